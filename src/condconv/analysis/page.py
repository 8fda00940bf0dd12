"""The report as one HTML page that needs no server, no network and no other file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from condconv.analysis import advice, charts, depth
from condconv.analysis.pictures import LONGEST_SIDE, MOST_PICTURES, Picture, shown
from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.report import RoutingReport
from condconv.analysis.summary import headline
from condconv.errors import UsageError, check_type, require_extra, shown_name
from condconv.files.atomic import write_atomic

_TOP_CLASSES = 10
_MARKER = re.compile(r"\{\{(\w+)\}\}")


def render_page(
    report: RoutingReport,
    *,
    title: str = "Routing report",
    subtitle: str = "",
    pictures: Mapping[int, Picture] | None = None,
    command: str | None = None,
) -> str:
    """Return the page as HTML text.

    Names of classes, files and layers may contain anything: they are escaped, and the page's policy forbids requests.

    Args:
        report: The report to show.
        title: Heading.
        subtitle: The line below, such as the data.
        pictures: Pictures by the report's numbers of its examples; None for a page without pictures.
        command: Shell command that makes the advised layers static, if there are any.

    Raises:
        MissingExtraError: plotly or scipy is not installed.
    """
    check_type("report", report, RoutingReport, "be a RoutingReport", "give what RoutingRecorder.report() returns")
    check_type("pictures", pictures, (Mapping, type(None)), "be pictures by number, or None", "see make_picture")
    plotly = require_extra("plotly.offline", "report")
    folder = resources.files("condconv.analysis") / "template"
    content = {
        "title": html.escape(title),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "plotly": plotly.get_plotlyjs(),
        "data": _json_for_script(_content(report, title, subtitle, dict(pictures or {}), command)),
        "charts": (folder / "charts.js").read_text(encoding="utf-8"),
        "script": (folder / "page.js").read_text(encoding="utf-8"),
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    # One pass: what is put in is not searched for markers again.
    return _MARKER.sub(lambda match: content[match[1]], template)


def save_page(report: RoutingReport, path: str | Path, **options: Any) -> None:
    """Write the report as a page for a browser.

    Args:
        report: The report to show.
        path: A `.html` file.
        **options: Options of `render_page`.

    Raises:
        UsageError: Another suffix, or the file cannot be written.
        MissingExtraError: plotly or scipy is not installed.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise UsageError(f"`path` must end in .html, got {shown_name(path)}: report.save(path) writes JSON, in .json")
    write_atomic(path, render_page(report, **options))


def _json_for_script(value: Any) -> str:
    """Return JSON that cannot end the script element around it, nor begin a comment there."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _content(
    report: RoutingReport, title: str, subtitle: str, pictures: dict[int, Picture], command: str | None
) -> dict[str, Any]:
    verdicts = advice.verdicts(report)
    layers = [
        _layer(record, verdict, report, pictures) for record, verdict in zip(report.routings, verdicts, strict=True)
    ]
    whole = [each for each in report.interventions if not each.routings]
    return {
        "title": title,
        "subtitle": subtitle,
        "headline": headline(report),
        "images": min(int(record.examples) for record in report.routings),
        "dead": sum(len(record.dead) for record in report.routings),
        "duplicates": sum(len(record.duplicates) for record in report.routings),
        "classes": None if report.class_names is None else len(report.class_names),
        "charts": depth.overview(report),
        "interventions": [_intervention(each) for each in whole],
        "layers": layers,
        "together": _together(report, verdicts),
        "command": command,
        "pictures": {str(number): [picture.source, picture.caption] for number, picture in pictures.items()},
        "most_pictures": MOST_PICTURES,
        "picture_side": LONGEST_SIDE,
        "low_share": 100 * advice.LOW_SHARE,
        "free_cost": advice.FREE_COST,
    }


def _intervention(each: Intervention) -> dict[str, Any]:
    return {
        "name": each.name,
        "images": each.images,
        "top1": each.top1,
        "agreement": each.agreement,
        "cost": each.cost,
        "error": each.cost_error,
    }


def _together(report: RoutingReport, verdicts: tuple[advice.Verdict, ...]) -> dict[str, Any] | None:
    """Return the latest measurement of all advised routings together."""
    advised = tuple(verdict.routing for verdict in verdicts if verdict.kind == "static")
    found = [each for each in report.interventions if each.routings and each.routings == advised]
    return _intervention(found[-1]) if found else None


def _layer(
    record: RoutingRecord, verdict: advice.Verdict, report: RoutingReport, pictures: dict[int, Picture]
) -> dict[str, Any]:
    cost = report.static_cost(record)
    return {
        "title": charts.routing_title(record),
        "layers": list(record.layers),
        "kind": record.kind,
        "experts": [_expert(record, expert, report.class_names, pictures) for expert in range(record.num_experts)],
        "charts": charts.layer(record, report.class_names),
        "verdict": {"kind": verdict.kind, "text": verdict.text},
        "share": record.between_class_share,
        "information": record.mutual_information,
        "per_example": record.experts_per_example,
        "in_all": record.experts_in_all,
        "extremes": record.extremes,
        "highest": charts.highest_mean(record),
        "outside": int(record.outside),
        "kernels": record.kernel_variation,
        "cost": None if cost is None else _intervention(cost),
    }


def _expert(
    record: RoutingRecord, expert: int, class_names: tuple[str, ...] | None, pictures: dict[int, Picture]
) -> dict[str, Any]:
    twins = [other for pair in record.duplicates if expert in pair for other in pair if other != expert]
    return {
        "mean": float(record.mean[expert]),
        "share": float(record.share_sums[expert] / record.examples),
        "dead": expert in record.dead,
        "twins": [other + 1 for other in twins],
        "images": shown(record.top_ids[expert].tolist(), record.top_weights[expert].tolist(), pictures),
        "classes": _top_classes(record, expert, class_names or ()),
    }


def _top_classes(record: RoutingRecord, expert: int, class_names: tuple[str, ...]) -> list[list[Any]]:
    means = record.class_mean[:, expert].nan_to_num(-torch.inf)
    order = means.argsort(descending=True, stable=True).tolist()[:_TOP_CLASSES]
    return [[class_names[index], round(float(means[index]), 3)] for index in order if record.class_examples[index]]
