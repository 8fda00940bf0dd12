"""The charts over the depth of the network: one value for each routing function.

Names are escaped here, since plotly interprets some HTML in texts.
"""

from __future__ import annotations

import html
import math

from condconv.analysis.charts import Figure, figure, rounded, routing_title
from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.report import RoutingReport
from condconv.analysis.statistics import chance_share


def overview(report: RoutingReport) -> dict[str, Figure]:
    """Return the curves over depth, by name: one value for each routing function, in the network's order."""
    records = report.routings
    in_use = [
        _line(records, [record.experts_per_example for record in records], "in one image", "%{y:.2f} experts"),
        _line(records, [record.experts_in_all for record in records], "over all images", "%{y:.2f} experts"),
    ]
    curves = {"effective": figure(in_use, "effective number of experts", from_zero=True)}
    kernels = [math.nan if record.kernel_variation is None else 100 * record.kernel_variation for record in records]
    if not all(map(math.isnan, kernels)):
        weights = [100 * record.variation for record in records]
        each = (("kernels", kernels), ("weights", weights))
        lines = [_line(records, values, name, f"{name} vary by %{{y:.1f}} %") for name, values in each]
        curves["kernels"] = figure(lines, "variation over images (%)", from_zero=True)
    wasted = {
        "dead experts": [float(len(record.dead)) for record in records],
        "duplicate pairs": [float(len(record.duplicates)) for record in records],
    }
    if any(sum(values) for values in wasted.values()):
        bars = [_bars(records, values, name, f"%{{y}} {name}") for name, values in wasted.items()]
        curves["wasted"] = figure(bars, "experts, pairs", from_zero=True)
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
        "share": figure(lines, "between classes (% of variance)", from_zero=True),
        "information": figure(
            [_line(records, bits, "mutual information", "%{y:.3f} bits")], "mutual information (bits)", from_zero=True
        ),
    }


def _costs(records: tuple[RoutingRecord, ...], costs: list[Intervention]) -> Figure:
    unit = "points of accuracy" if costs[0].right is not None else "% of predictions"
    bars = _bars(records, [each.cost for each in costs], "cost", "%{y:.2f} " + unit)
    bars["error_y"] = {"type": "data", "array": [rounded(each.cost_error) for each in costs], "thickness": 1.2}
    return figure([bars], f"{unit} lost" if costs[0].right is not None else f"{unit} changed")


def _line(records: tuple[RoutingRecord, ...], values: list[float], name: str, hover: str) -> Figure:
    return {"type": "scatter", "mode": "lines+markers", "name": name, **_over_depth(records, values, hover)}


def _bars(records: tuple[RoutingRecord, ...], values: list[float], name: str, hover: str) -> Figure:
    bars = {"type": "bar", "name": name, "textposition": "none", **_over_depth(records, values, hover)}
    return bars if len(records) > 1 else bars | {"width": 0.3}  # one alone would be as wide as the chart


def _over_depth(records: tuple[RoutingRecord, ...], values: list[float], hover: str) -> Figure:
    return {
        "x": [str(number) for number in range(1, len(records) + 1)],
        "y": [rounded(value) for value in values],
        "text": [html.escape(routing_title(record), quote=False) for record in records],
        "hovertemplate": f"%{{x}}. %{{text}}<br>{hover}<extra></extra>",
    }
