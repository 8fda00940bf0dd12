"""The charts of one routing function, as plotly figures in plain dictionaries; the page adds colours, light or dark.

Names are escaped here, since plotly interprets some HTML in texts.
"""

from __future__ import annotations

import html
import textwrap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condconv.analysis.records import RoutingRecord
from condconv.analysis.statistics import BINS
from condconv.errors import require_extra

Figure = dict[str, Any]

_LONGEST_LABEL = 22
_LONGEST_LINE = 32
# On a phone, where a longer one would leave nothing of the heatmap.
_LONGEST_NARROW_LABEL = 10


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


def layer(record: RoutingRecord, class_names: tuple[str, ...] | None) -> dict[str, Figure]:
    """Return the charts of one routing function, by name."""
    charts = {"histogram": _histogram(record)}
    if class_names is None:
        return charts
    return {"heatmap": _heatmap(record, class_names), "spread": _spread(record)} | charts


def class_order(class_mean: Tensor) -> list[int]:
    """Return the classes in an order with similar weights next to each other; unseen classes come last.

    Args:
        class_mean: `[K, E]`, NaN in the row of a class that was not seen.
    """
    seen = (~class_mean.isnan().any(1)).nonzero().flatten().tolist()
    unseen = [index for index in range(len(class_mean)) if index not in set(seen)]
    if len(seen) < 3:
        return [*seen, *unseen]
    hierarchy = require_extra("scipy.cluster.hierarchy", "report")
    # Turning the branches so that neighbours are alike takes the cube of the number of classes.
    tree = hierarchy.linkage(class_mean[seen].numpy(), "average", optimal_ordering=len(seen) <= 200)
    return [*(seen[index] for index in hierarchy.leaves_list(tree)), *unseen]


def _heatmap(record: RoutingRecord, class_names: tuple[str, ...]) -> Figure:
    order = class_order(record.class_mean)
    trace = {
        "type": "heatmap",
        "x": _experts(record),
        "y": [_wrapped(class_names[index]) for index in order],
        "z": [[rounded(value) for value in row] for row in record.class_mean[order].tolist()],
        "coloraxis": "coloraxis",
        "hovertemplate": "%{y}<br>expert %{x}: %{z:.3f}<extra></extra>",
        "xgap": 1,
        "ygap": 1 if len(order) <= 100 else 0,
    }
    drawn = figure([trace], "", x_title="expert")
    drawn["layout"] |= {
        "height": min(760, 110 + max(24 * len(order), 180)),
        "yaxis": {"title": {"text": ""}, "type": "category", "autorange": "reversed", "showgrid": False},
        # Each layer has its own range: one for all would hide how classes differ where all weights are small.
        "coloraxis": {
            "cmin": 0,
            "cmax": highest_mean(record),
            # At its side: above it, it would lie on the highest number, and be cut off on a phone.
            "colorbar": {"title": {"text": "mean weight", "side": "right"}, "thickness": 10, "len": 1},
        },
    }
    if len(order) <= 30:
        drawn["layout"]["yaxis"] |= {"tickvals": trace["y"], "ticktext": _labels(order, class_names, _LONGEST_LABEL)}
        drawn["narrow"] = {"ticktext": _labels(order, class_names, _LONGEST_NARROW_LABEL)}
    else:
        drawn["layout"]["yaxis"] |= {"showticklabels": False, "ticks": "", "title": {"text": f"{len(order)} classes"}}
    return drawn


def _spread(record: RoutingRecord) -> Figure:
    between, within = record.variances or (torch.zeros(record.num_experts), torch.zeros(record.num_experts))
    bars = [
        _expert_bars(record, between.sqrt().tolist(), "between classes", "%{y:.3f} between classes"),
        _expert_bars(record, within.sqrt().tolist(), "within a class", "%{y:.3f} within a class"),
    ]
    return figure(bars, "standard deviation", x_title="expert", from_zero=True)


def _histogram(record: RoutingRecord) -> Figure:
    counts = record.histogram.sum(0)
    centres = (np.arange(BINS) + 0.5) / BINS
    bars = {
        "type": "bar",
        "x": [rounded(value) for value in centres],
        "y": [rounded(value) for value in (100 * counts / counts.sum()).tolist()],
        "width": 1 / BINS,
        "hovertemplate": "weight %{x:.2f}: %{y:.1f} %<extra></extra>",
    }
    drawn = figure([bars], "% of weights", x_title="routing weight", from_zero=True)
    drawn["layout"]["xaxis"] |= {"range": [0, 1], "type": "linear"}
    drawn["layout"]["bargap"] = 0
    return drawn


def _expert_bars(record: RoutingRecord, values: list[float], name: str, hover: str) -> Figure:
    return {
        "type": "bar",
        "name": name,
        "x": _experts(record),
        "y": [rounded(value) for value in values],
        "hovertemplate": f"expert %{{x}}: {hover}<extra></extra>",
    }


def highest_mean(record: RoutingRecord) -> float:
    """Return the highest mean weight of a class on an expert, the end of scales and bars; 1 without classes."""
    return float(record.class_mean.nan_to_num(0.0).max()) if len(record.class_examples) else 1.0


def _experts(record: RoutingRecord) -> list[str]:
    return [str(number) for number in range(1, record.num_experts + 1)]


def _wrapped(name: str) -> str:
    """Return a name in lines that fit on a phone, since the text next to the pointer does not wrap by itself."""
    lines = textwrap.wrap(name, _LONGEST_LINE, expand_tabs=False, replace_whitespace=False, drop_whitespace=False)
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _labels(order: list[int], class_names: tuple[str, ...], longest: int) -> list[str]:
    names = (class_names[index] for index in order)
    short = (name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names)
    return [html.escape(name, quote=False) for name in short]
