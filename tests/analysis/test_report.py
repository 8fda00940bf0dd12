import csv
import io
from dataclasses import replace

import pytest
import torch
from torch import nn

from condconv.analysis import Intervention, RoutingReport, freeze_command, verdicts
from condconv.errors import UsageError
from tests.analysis.samples import CLASSES, layer, recorded, routed_block


@pytest.fixture
def report() -> RoutingReport:
    network = nn.Sequential(layer(), routed_block())
    found = recorded(network, torch.rand(12, 2), torch.arange(12) % 3)
    return replace(found, interventions=(Intervention("mean", (found.routings[0].name,), 12, 11, 10, 1, 2),))


def same(ours: RoutingReport, theirs: RoutingReport) -> bool:
    pairs = zip(ours.routings, theirs.routings, strict=True)
    return all(
        torch.equal(value, vars(other)[name]) if isinstance(value, torch.Tensor) else value == vars(other)[name]
        for record, other in pairs
        for name, value in vars(record).items()
    )


def test_json_round_trip(tmp_path, report):
    report.save(tmp_path / "a.json")
    read = RoutingReport.load(tmp_path / "a.json")
    assert same(report, read)
    assert (read.class_names, read.interventions) == (CLASSES, report.interventions)
    assert read.rows() == report.rows()


def test_json_round_trip_without_classes(tmp_path):
    report = recorded(nn.Sequential(layer()), torch.rand(3, 2))
    report.save(tmp_path / "a.json")
    read = RoutingReport.load(tmp_path / "a.json")
    assert same(report, read)
    assert read.class_names is None
    assert read.routings[0].class_mean.shape == (0, 2)


def test_rows_are_flat(report):
    rows = report.rows()
    assert [row["layers"] for row in rows] == ["0", "1.first 1.second"]
    assert [row["static_cost"] for row in rows] == [pytest.approx(100 / 12), None]
    assert all(isinstance(value, str | int | float | None) for row in rows for value in row.values())
    csv.DictWriter(io.StringIO(), rows[0]).writerows(rows)


def test_a_routing_is_found_by_its_name_or_a_layer(report):
    assert report.routing("1.second") is report.routing("1.routing_fn") is report.routings[1]


def test_other_files_are_refused(tmp_path, report):
    with pytest.raises(UsageError, match=r"`path` must end in .json or .html, got .*a\.txt"):
        report.save(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="`path` must be a file that can be written"):
        report.save(tmp_path / "no" / "a.json")
    for text in ("", "[]", "{}", '{"format": 9}', '{"format": 1, "class_names": null}'):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UsageError, match="`path` must be a JSON file that a report wrote"):
            RoutingReport.load(tmp_path / "b.json")
    with pytest.raises(UsageError, match=r"got .*missing\.json"):
        RoutingReport.load(tmp_path / "missing.json")


def judged(inputs, targets, changes) -> str:
    """The kind of verdict on a layer whose mean weights change so many of 1000 answers to wrong ones."""
    report = recorded(nn.Sequential(layer()), inputs, targets)
    name = report.routings[0].name
    counted = {} if targets is None else {"right": 900 - changes, "gained": 0, "lost": changes}
    measured = Intervention("mean", (name,), 1000, 1000 - changes, **counted)
    (verdict,) = verdicts(replace(report, interventions=(measured,)))
    return verdict.kind


def test_verdicts_follow_their_two_figures():
    targets = torch.arange(300) % 3
    by_class = torch.stack([targets / 2, 1 - targets / 2], 1)  # all of the variance is between classes
    by_image = torch.rand(300, 2)  # hardly any: 2 / 299 by chance
    # One of 1000 is 0.1 points, the most that counts as free.
    assert judged(by_image, targets, 1) == "static"
    assert judged(by_image, targets, 2) == "needed"
    assert judged(by_class, targets, 1) == "spare"
    assert judged(by_class, targets, 2) == "needed"
    assert judged(by_image, None, 1) == "static"
    assert judged(by_image, None, 2) == "needed"


def test_chance_is_taken_off():
    # Three images of three classes: every variance is between classes, and that says nothing.
    assert judged(torch.rand(3, 2), torch.arange(3), 0) == "static"


def test_without_measurements_there_is_no_advice(report):
    assert [verdict.kind for verdict in verdicts(report)] == ["needed", "unknown"]
    assert freeze_command(report, "a.safetensors", "data") is None


def test_the_command_names_the_advised_layers(report):
    free = tuple(Intervention("mean", (record.name,), 1000, 1000, 900, 0, 0) for record in report.routings)
    text = freeze_command(replace(report, interventions=free), "my run/best.safetensors", "data")
    assert text == ("condconv freeze 'my run/best.safetensors' --data data --layers '0,1.*' -o frozen.safetensors")
