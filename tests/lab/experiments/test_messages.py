"""Plots say what is wrong with what they were given, in four parts."""

from __future__ import annotations

from typing import Any

import torch

from condconv.lab.experiments import plots
from condconv.lab.experiments.routing_picture import Grouping, plot_routing
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
        ("groupings", lambda: plot_routing("x.png", anything, title="")),
        ("groupings", lambda: plot_routing("x.png", [], title="")),
        ("groupings", lambda: plot_routing("x.png", [Grouping("a", ("b",), {})], title="")),
        ("groupings", lambda: plot_routing("x.png", [Grouping("a", ("b",), {"c": torch.ones(1)})], title="")),
        ("groupings", lambda: plot_routing("x.png", [Grouping("a", ("b",), {"c": torch.ones(2, 3)})], title="")),
    ],
}


@each_row(ROWS)
def test_messages_have_four_parts(row: Row) -> None:
    assert_four_parts(*row)
