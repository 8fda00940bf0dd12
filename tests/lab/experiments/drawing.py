"""What the tests of pictures have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure


def drawn(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], object]) -> Figure:
    """Run a drawing function and return the figure it saved."""
    saved = []
    original = Figure.savefig

    def save(self: Figure, path: Any, **options: Any) -> None:
        saved.append(self)
        original(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    draw()
    return saved[0]
