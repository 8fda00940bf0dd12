"""What all figures of the page share: plotly figures in plain dictionaries; the page adds colours, light or dark."""

from __future__ import annotations

from typing import Any

import numpy as np

from condconv.analysis.records import RoutingRecord

Figure = dict[str, Any]


def figure(
    traces: list[Figure], y_title: str, *, x_title: str = "routing, from first to last", from_zero: bool = False
) -> Figure:
    """Return a figure of these traces, with a category for each routing function or expert along x."""
    y_axis: Figure = {"title": {"text": y_title}, "zeroline": True}
    if from_zero:
        y_axis["rangemode"] = "tozero"
    return {
        "data": traces,
        "layout": {
            "height": 280,
            "showlegend": len(traces) > 1,
            "xaxis": {"title": {"text": x_title}, "type": "category"},
            "yaxis": y_axis,
        },
    }


def routing_title(record: RoutingRecord) -> str:
    """Return a short name of a routing function: the block, or the layer, that it routes."""
    if record.name == "routing_fn":
        return "the whole network"
    return record.name.removesuffix(".routing_fn")


def rounded(value: float) -> float | None:
    """Return a number with the digits that are visible; None, which leaves a gap, for NaN."""
    return None if np.isnan(value) else round(float(value), 4)
