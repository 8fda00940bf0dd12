"""The charts of the page, as plotly figures in plain dictionaries; the page adds colours, light or dark.

Names are escaped here: plotly reads a part of HTML in every text.
"""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.statistics import BINS, chance_share
from condconv.errors import require_extra

if TYPE_CHECKING:
    from condconv.analysis.report import RoutingReport

Figure = dict[str, Any]
_LONGEST_LABEL = 22
_LONGEST_LINE = 32
# On a phone, where a longer one would leave nothing of the heatmap.
_LONGEST_NARROW_LABEL = 10


def overview(report: RoutingReport) -> dict[str, Figure]:
    """Return the curves over depth, by name: one value for each routing function, in the network's order."""
    records = report.routings
    in_use = [
        _line(records, [record.experts_per_example for record in records], "in one image", "%{y:.2f} experts"),
        _line(records, [record.experts_in_all for record in records], "over all images", "%{y:.2f} experts"),
    ]
    curves = {"effective": _figure(in_use, "effective number of experts", from_zero=True)}
    wasted = {
        "dead experts": [float(len(record.dead)) for record in records],
        "duplicate pairs": [float(len(record.duplicates)) for record in records],
    }
    if any(sum(values) for values in wasted.values()):
        bars = [_bars(records, values, name, f"%{{y}} {name}") for name, values in wasted.items()]
        curves["wasted"] = _figure(bars, "experts, pairs", from_zero=True)
        if max(map(max, wasted.values())) <= 10:
            curves["wasted"]["layout"]["yaxis"]["dtick"] = 1  # there are no halves of an expert
    costs = [cost for record in records if (cost := report.static_cost(record)) is not None]
    if len(costs) == len(records):
        curves["cost"] = _costs(records, costs)
    if report.class_names is None:
        return curves
    return _by_class(records) | curves


def _by_class(records: tuple[RoutingRecord, ...]) -> dict[str, Figure]:
    shares = [100 * (record.between_class_share or 0.0) for record in records]
    lines = [_line(records, shares, "measured", "%{y:.1f} %")]
    chance = [100 * chance_share(record.class_examples) for record in records]
    if max(chance) >= 1:
        lines.append(_line(records, chance, "by chance", "%{y:.1f} % by chance") | {"line": {"dash": "dot"}})
    bits = [record.mutual_information or 0.0 for record in records]
    return {
        "share": _figure(lines, "between classes (% of variance)", from_zero=True),
        "information": _figure(
            [_line(records, bits, "mutual information", "%{y:.3f} bits")], "mutual information (bits)", from_zero=True
        ),
    }


def _costs(records: tuple[RoutingRecord, ...], costs: list[Intervention]) -> Figure:
    unit = "points of accuracy" if costs[0].right is not None else "% of predictions"
    bars = _bars(records, [each.cost for each in costs], "cost", "%{y:.2f} " + unit)
    bars["error_y"] = {"type": "data", "array": [_round(each.cost_error) for each in costs], "thickness": 1.2}
    return _figure([bars], f"{unit} lost" if costs[0].right is not None else f"{unit} changed")


def layer(record: RoutingRecord, class_names: tuple[str, ...] | None) -> dict[str, Figure]:
    """Return the charts of one routing function, by name."""
    charts = {"histogram": _histogram(record)}
    if class_names is None:
        return charts
    return {"heatmap": _heatmap(record, class_names), "spread": _spread(record)} | charts


def class_order(class_mean: Tensor) -> list[int]:
    """Return the classes so that those with like weights stand beside one another; unseen classes come last.

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
        "z": [[_round(value) for value in row] for row in record.class_mean[order].tolist()],
        "coloraxis": "coloraxis",
        "hovertemplate": "%{y}<br>expert %{x}: %{z:.3f}<extra></extra>",
        "xgap": 1,
        "ygap": 1 if len(order) <= 100 else 0,
    }
    figure = _figure([trace], "", x_title="expert")
    figure["layout"] |= {
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
        figure["layout"]["yaxis"] |= {"tickvals": trace["y"], "ticktext": _labels(order, class_names, _LONGEST_LABEL)}
        figure["narrow"] = {"ticktext": _labels(order, class_names, _LONGEST_NARROW_LABEL)}
    else:
        figure["layout"]["yaxis"] |= {"showticklabels": False, "ticks": "", "title": {"text": f"{len(order)} classes"}}
    return figure


def _spread(record: RoutingRecord) -> Figure:
    between, within = record.variances or (torch.zeros(record.num_experts), torch.zeros(record.num_experts))
    bars = [
        _expert_bars(record, between.sqrt().tolist(), "between classes", "%{y:.3f} between classes"),
        _expert_bars(record, within.sqrt().tolist(), "within a class", "%{y:.3f} within a class"),
    ]
    return _figure(bars, "standard deviation", x_title="expert", from_zero=True)


def _histogram(record: RoutingRecord) -> Figure:
    counts = record.histogram.sum(0)
    centres = (np.arange(BINS) + 0.5) / BINS
    bars = {
        "type": "bar",
        "x": [_round(value) for value in centres],
        "y": [_round(value) for value in (100 * counts / counts.sum()).tolist()],
        "width": 1 / BINS,
        "hovertemplate": "weight %{x:.2f}: %{y:.1f} %<extra></extra>",
    }
    figure = _figure([bars], "% of weights", x_title="routing weight", from_zero=True)
    figure["layout"]["xaxis"] |= {"range": [0, 1], "type": "linear"}
    figure["layout"]["bargap"] = 0
    return figure


def _line(records: tuple[RoutingRecord, ...], values: list[float], name: str, hover: str) -> Figure:
    return {"type": "scatter", "mode": "lines+markers", "name": name, **_over_depth(records, values, hover)}


def _bars(records: tuple[RoutingRecord, ...], values: list[float], name: str, hover: str) -> Figure:
    bars = {"type": "bar", "name": name, "textposition": "none", **_over_depth(records, values, hover)}
    return bars if len(records) > 1 else bars | {"width": 0.3}  # one alone would be as wide as the chart


def _over_depth(records: tuple[RoutingRecord, ...], values: list[float], hover: str) -> Figure:
    return {
        "x": [str(number) for number in range(1, len(records) + 1)],
        "y": [_round(value) for value in values],
        "text": [html.escape(title(record), quote=False) for record in records],
        "hovertemplate": f"%{{x}}. %{{text}}<br>{hover}<extra></extra>",
    }


def _expert_bars(record: RoutingRecord, values: list[float], name: str, hover: str) -> Figure:
    return {
        "type": "bar",
        "name": name,
        "x": _experts(record),
        "y": [_round(value) for value in values],
        "hovertemplate": f"expert %{{x}}: {hover}<extra></extra>",
    }


def _figure(
    traces: list[Figure], y_title: str, *, x_title: str = "routing, from first to last", from_zero: bool = False
) -> Figure:
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


def highest_mean(record: RoutingRecord) -> float:
    """Return the highest mean weight of a class on an expert: the end of colours and bars; 1 without classes."""
    return float(record.class_mean.nan_to_num(0.0).max()) if len(record.class_examples) else 1.0


def title(record: RoutingRecord) -> str:
    """Return a short name of a routing function: the block, or the layer, that it routes."""
    if record.name == "routing_fn":
        return "the whole network"
    return record.name.removesuffix(".routing_fn")


def _experts(record: RoutingRecord) -> list[str]:
    return [str(number) for number in range(1, record.num_experts + 1)]


def _wrapped(name: str) -> str:
    """Return a name in lines that fit on a phone: the text beside the pointer is not broken by itself."""
    lines = textwrap.wrap(name, _LONGEST_LINE, expand_tabs=False, replace_whitespace=False, drop_whitespace=False)
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _labels(order: list[int], class_names: tuple[str, ...], longest: int) -> list[str]:
    names = (class_names[index] for index in order)
    short = (name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names)
    return [html.escape(name, quote=False) for name in short]


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
