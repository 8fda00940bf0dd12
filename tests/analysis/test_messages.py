"""Every public function of the room says what is wrong with what it was given, in four parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv import analysis
from condconv.analysis import RoutingRecorder, RoutingReport
from tests.messages import Row, assert_every_function_has_rows, assert_four_parts, each_row

_LONG: Any = "x" * 100_000
anything: Any = object()


class Classifier(nn.Module):
    """Three classes, one layer with experts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = condconv.CondConv2d(2, 3, 1, num_experts=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def record(update: Any = None, names: Any = ("a", "b", "c"), run: bool = True, **given: Any) -> RoutingReport:
    network = Classifier().eval()
    with RoutingRecorder(network, names, **given) as recorder, torch.inference_mode():
        if run:
            network(torch.randn(2, 2, 4, 4))
        if update is not None:
            recorder.update(**update)
    return recorder.report()


def good() -> RoutingReport:
    return record({"targets": torch.tensor([0, 2])})


def diverged() -> None:
    network = Classifier()
    with RoutingRecorder(network) as recorder, torch.inference_mode():
        network(torch.full((2, 2, 4, 4), torch.nan))
        recorder.update()


def twice() -> None:
    network = Classifier()
    with RoutingRecorder(network) as recorder, torch.inference_mode():
        network(torch.randn(2, 2, 4, 4))
        network(torch.randn(2, 2, 4, 4))
        recorder.update()


def entered_twice() -> None:
    with RoutingRecorder(Classifier()) as recorder, recorder:
        pass


def changed(**given: Any) -> None:
    with analysis.changed_routing(**{"network": Classifier(), "change": lambda name, weights: weights, **given}):
        pass


def measured(function: Any, *more: Any, **given: Any) -> Any:
    batches = [(torch.randn(2, 2, 4, 4), torch.tensor([0, 1]))]
    return function(*{"network": Classifier(), "batches": batches, "report": good(), **given}.values(), *more)


def loaded(text: str, tmp_path: Path = Path("/nonexistent")) -> Any:
    return RoutingReport.load(tmp_path / text)


ROWS: dict[str, list[Row]] = {
    "RoutingRecorder": [
        ("network", lambda: RoutingRecorder(anything)),
        ("network", lambda: RoutingRecorder(nn.Linear(3, 3))),
        ("class_names", lambda: RoutingRecorder(Classifier(), [])),
        ("class_names", lambda: RoutingRecorder(Classifier(), _LONG)),
        ("class_names", lambda: RoutingRecorder(Classifier(), anything)),
        ("top_examples", lambda: RoutingRecorder(Classifier(), top_examples=-1)),
        ("top_examples", lambda: RoutingRecorder(Classifier(), top_examples=_LONG)),
        ("recorder", entered_twice),
        ("targets", lambda: record({"targets": _LONG})),
        ("targets", lambda: record({"targets": None})),
        ("targets", lambda: record({"targets": torch.tensor([0.5, 1.0])})),
        ("targets", lambda: record({"targets": torch.tensor([0, 9])})),
        ("targets", lambda: record({"targets": torch.tensor([0, 1, 2])})),
        ("ids", lambda: record({"targets": torch.tensor([0, 1]), "ids": torch.tensor([0])})),
        ("ids", lambda: record({"targets": torch.tensor([0, 1]), "ids": _LONG})),
        ("network", lambda: record({"targets": torch.tensor([0, 1])}, run=False)),
        ("network", diverged),
        ("update", twice),
        ("recorder", record),
    ],
    "RoutingReport": [
        ("name", lambda: good().routing(_LONG)),
        ("name", lambda: good().routing(anything)),
        ("path", lambda: good().save("report.txt")),
        ("path", lambda: good().save("\x1b[2J")),
        ("path", lambda: loaded("a.json")),
        ("path", lambda: loaded("\x1b.json")),
    ],
    "changed_routing": [
        ("network", lambda: changed(network=anything)),
        ("network", lambda: changed(network=nn.Linear(3, 3))),
        ("change", lambda: changed(change=_LONG)),
        ("routings", lambda: changed(routings=[_LONG])),
        ("routings", lambda: changed(routings=3)),
    ],
    "make_static_command": [
        ("report", lambda: analysis.make_static_command(anything, "x")),
        ("checkpoint", lambda: analysis.make_static_command(good(), anything)),
    ],
    "keep_top": [
        ("weights", lambda: analysis.keep_top(anything, 1)),
        ("weights", lambda: analysis.keep_top(torch.ones(3), 1)),
        ("k", lambda: analysis.keep_top(torch.ones(2, 3), 4)),
        ("k", lambda: analysis.keep_top(torch.ones(2, 3), _LONG)),
    ],
    "choose_pictures": [
        ("report", lambda: analysis.choose_pictures(anything)),
        ("most", lambda: analysis.choose_pictures(good(), -1)),
        ("most", lambda: analysis.choose_pictures(good(), _LONG)),
    ],
    "make_picture": [
        ("image", lambda: analysis.make_picture(_LONG, "")),
        ("caption", lambda: analysis.make_picture(type("Image", (), {"convert": 0}), anything)),
    ],
    "measure_interventions": [
        ("network", lambda: measured(analysis.measure_interventions, network=anything)),
        ("network", lambda: measured(analysis.measure_interventions, network=nn.Linear(2, 2))),
        ("report", lambda: measured(analysis.measure_interventions, report=_LONG)),
        ("batches", lambda: measured(analysis.measure_interventions, batches=[])),
        ("batches", lambda: measured(analysis.measure_interventions, batches=3)),
        ("layer_images", lambda: analysis.measure_interventions(Classifier(), [], good(), layer_images=_LONG)),
    ],
    "measure_static": [
        ("network", lambda: measured(analysis.measure_static, [], network=anything)),
        ("report", lambda: measured(analysis.measure_static, [], report=anything)),
        ("routings", lambda: measured(analysis.measure_static, 3)),
        ("routings", lambda: measured(analysis.measure_static, [_LONG])),
    ],
    "render_page": [
        ("report", lambda: analysis.render_page(anything)),
        ("pictures", lambda: analysis.render_page(good(), pictures=anything)),
    ],
    "save_page": [
        ("report", lambda: analysis.save_page(anything, "report.html")),
        ("path", lambda: analysis.save_page(good(), "report.json")),
    ],
    "layers_by_routing": [
        ("network", lambda: analysis.layers_by_routing(anything)),
        ("network", lambda: analysis.layers_by_routing(nn.Linear(3, 3))),
    ],
    "headline": [("report", lambda: analysis.headline(anything))],
    "summarize": [("report", lambda: analysis.summarize(anything))],
    "verdicts": [("report", lambda: analysis.verdicts(anything))],
}


@each_row(ROWS)
def test_messages_have_four_parts(row: Row) -> None:
    assert_four_parts(*row)


def test_every_public_function_has_rows() -> None:
    assert_every_function_has_rows(analysis, ROWS, {})


@pytest.mark.parametrize("text", ['{"format": "\\u001b"}', "[1]", '{"format": 1}', "nothing", "[" * 100_000])
def test_files_that_are_no_reports(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    assert_four_parts("path", lambda: RoutingReport.load(tmp_path / "x.json"))
