"""Plots say what is wrong with what they were given, in four parts."""

from __future__ import annotations

from typing import Any

import torch

from condconv.lab.experiments import plots
from tests.messages import Row, assert_four_parts, each_row

_LONG: Any = "x" * 100_000
anything: Any = object()

ROWS: dict[str, list[Row]] = {
    "plot_learning_curves": [
        ("accuracy", lambda: plots.plot_learning_curves("x.png", anything, {}, title="")),
        ("accuracy", lambda: plots.plot_learning_curves("x.png", {}, {}, title="")),
        ("accuracy", lambda: plots.plot_learning_curves("x.png", {"a": [0.5]}, {}, title="")),
        ("loss", lambda: plots.plot_learning_curves("x.png", {"a": [[0.5]]}, {"a": _LONG}, title="")),
    ],
    "plot_routing": [
        ("mean_weights", lambda: plots.plot_routing("x.png", anything, [], title="")),
        ("mean_weights", lambda: plots.plot_routing("x.png", torch.ones(3), ["a"] * 3, title="")),
        ("mean_weights", lambda: plots.plot_routing("x.png", torch.ones(3, 2), ["a"], title="")),
        ("most_classes", lambda: plots.plot_routing("x", torch.ones(1, 2), ["a"], title="", most_classes=0)),
    ],
}


@each_row(ROWS)
def test_messages_have_four_parts(row: Row) -> None:
    assert_four_parts(*row)
