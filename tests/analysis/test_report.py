import csv
import io
import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from condconv.analysis import Intervention, RoutingReport, Verdict, make_static_command, verdicts
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
    with pytest.raises(UsageError, match=r"`path` must end in .json, got .*a\.txt: save_page"):
        report.save(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="`out` must be where files can be written"):
        report.save(tmp_path / "no" / "a.json")
    with pytest.raises(
        UsageError, match=r"got .*missing\.json, which cannot be read \(No such file or directory\): save"
    ):
        RoutingReport.load(tmp_path / "missing.json")
    with pytest.raises(UsageError, match=r"which cannot be read \(Is a directory\)"):
        RoutingReport.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not a complete JSON text, from line 1, column 1 on"),
        (b"<!DOCTYPE html>", "is not a complete JSON text, from line 1, column 1 on"),
        (b'{"format": 2, "routings": [{"name"', "is not a complete JSON text, from line 1, column 35 on"),
        (pickle.dumps({"format": 2}), "is not text (a pickle or a checkpoint?)"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[]", "is JSON of something else, without a 'format'"),
        (b"{}", "is JSON of something else, without a 'format'"),
        (b'{"format": 9}', "has format 9"),
        (
            b'{"format": 2, "class_names": null}',
            "has a value of another kind (it must be a mapping of class_names, inter",
        ),
        (
            b'{"format": 2, "class_names": null, "routings": [], "interventions": []}',
            "has a value of another kind (`routings` must be a list of",
        ),
        (
            b'{"format": 2, "class_names": null, "routings": [3], "interventions": []}',
            "has a value of another kind (`routings[0]` must be a mapping, got 3)",
        ),
        (
            b'{"format": 2, "class_names": null, "routings": {}, "interventions": []}',
            "has a value of another kind (`routings` must be a list of",
        ),
    ],
)
def test_files_that_are_no_reports(tmp_path, content, why):
    path = tmp_path / "b.json"
    path.write_bytes(content)
    rule = f"`path` must be a JSON file that RoutingReport.save wrote (format 2), got {path}, which {why}"
    with pytest.raises(UsageError, match=re.escape(rule)):
        RoutingReport.load(path)


def changed(values, where, value):
    """Set one entry, or remove it with `...`."""
    *path, last = where
    for each in path:
        values = values[each]
    if value is ...:
        del values[last]
    else:
        values[last] = value


RECORD, INTERVENTION = ("routings", 0), ("interventions", 0)


@pytest.mark.parametrize(
    ("where", "value", "why"),
    [
        (("class_names",), 3, "has a value of another kind (`class_names` must be a list of"),
        (("class_names",), ["cat"], "has 'class_examples' of '0.routing_fn' in shape (3,), not (1,)"),
        (("class_names",), None, "has 'class_examples' of '0.routing_fn' in shape (3,), not (0,)"),
        ((*RECORD, "class_sums"), ..., "got one without 'class_sums')"),
        ((*RECORD, "name"), ..., "got one without 'name')"),
        ((*RECORD, "more"), 1, "got one with 'more')"),
        ((*RECORD, "layers"), "0", "`routings[0].layers` must be a list of 1 to 1000000, got '0')"),
        ((*RECORD, "layers"), [], "`routings[0].layers` must be a list of 1 to 1000000, got [])"),
        ((*RECORD, "kind"), None, "`routings[0].kind` must be a text, got None)"),
        ((*RECORD, "examples"), 0, "has no examples of '0.routing_fn'"),
        ((*RECORD, "examples"), [12], "has 'examples' of '0.routing_fn' in shape (1,), not ()"),
        ((*RECORD, "examples"), 10**30, "has no numbers in even rows as 'examples' of '0.routing_fn'"),
        ((*RECORD, "class_sums"), [[1.0, 2.0], [3.0]], "has no numbers in even rows as 'class_sums' of '0.routing_fn'"),
        ((*RECORD, "class_sums"), "much", "has no numbers in even rows as 'class_sums' of '0.routing_fn'"),
        ((*RECORD, "class_sums"), None, "has no numbers in even rows as 'class_sums' of '0.routing_fn'"),
        ((*RECORD, "class_sums"), [[1.0, 2.0]], "has 'class_sums' of '0.routing_fn' in shape (1, 2), not (3, 2)"),
        ((*RECORD, "histogram"), [[1, 2], [3, 4]], "has 'histogram' of '0.routing_fn' in shape (2, 2), not (2, 40)"),
        ((*RECORD, "top_ids"), 4, "has 'top_weights' of '0.routing_fn' in shape (2, 10), not (2, 0)"),
        ((*RECORD, "entropy_sum"), 1e308, "has an 'entropy_sum' of '0.routing_fn' beyond "),
        ((*RECORD, "entropy_sum"), float("nan"), "has numbers that are not finite in 'entropy_sum' of '0.routing_fn'"),
        (("interventions",), 5, "`interventions` must be a list of 0 to 1000000, got 5)"),
        ((*INTERVENTION, "lost"), ..., "got one without 'lost')"),
        ((*INTERVENTION, "images"), 0, ".images` must be a whole number from 1 to"),
        ((*INTERVENTION, "agree"), None, ".agree` must be a whole number from 0 to"),
        ((*INTERVENTION, "right"), 0.5, ".right` must be a whole number from 0 to"),
        ((*INTERVENTION, "routings"), "x", ".routings` must be a list of 0 to 1000000, got 'x')"),
        (INTERVENTION, [], " must be a mapping, got [])"),
    ],
)
def test_reports_that_someone_changed(tmp_path, report, where, value, why):
    path = tmp_path / "a.json"
    report.save(path)
    values = json.loads(path.read_text())
    changed(values, where, value)
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r", which has .*: save the report again") as caught:
        RoutingReport.load(path)
    assert f"got {path}, " in str(caught.value)
    assert why in str(caught.value)


def test_a_report_without_remembered_examples(tmp_path):
    report = recorded(nn.Sequential(layer()), torch.rand(3, 2), top_examples=0)
    report.save(tmp_path / "a.json")
    assert RoutingReport.load(tmp_path / "a.json").routings[0].top_ids.shape == (2, 0)


def verdict_on(inputs, targets, lost, images=1000, gained=0) -> Verdict:
    """The verdict on a layer whose mean weights turn so many of the images' answers wrong, and so many right."""
    report = recorded(nn.Sequential(layer()), inputs, targets, [f"{index}" for index in range(200)])
    name = report.routings[0].name
    counted = {} if targets is None else {"right": images - lost, "gained": gained, "lost": lost}
    measured = Intervention("mean", (name,), images, images - lost - gained, **counted)
    (verdict,) = verdicts(replace(report, interventions=(measured,)))
    return verdict


TARGETS = torch.arange(300) % 3
BY_CLASS = torch.stack([TARGETS / 2, 1 - TARGETS / 2], 1)  # all of the variance is between classes


def test_verdicts_follow_their_two_figures():
    by_image = torch.rand(300, 2)  # hardly any variance is between classes: 2 / 299 by chance
    # Two of 2000 are 0.1 points, the most that counts as free.
    assert verdict_on(by_image, TARGETS, 2, 2000).kind == "static"
    assert verdict_on(by_image, TARGETS, 3, 2000).kind == "needed"
    assert verdict_on(BY_CLASS, TARGETS, 2, 2000).kind == "spare"
    assert verdict_on(BY_CLASS, TARGETS, 3, 2000).kind == "needed"
    assert verdict_on(by_image, None, 2, 2000).kind == "static"
    assert verdict_on(by_image, None, 3, 2000).kind == "needed"
    assert verdict_on(by_image, TARGETS, 2, 2000).images_needed is None


@pytest.mark.parametrize(
    ("lost", "gained", "images", "kind", "needed"),
    [
        (0, 0, 999, "few", 1000),  # one image is more than 0.1 points
        (0, 0, 1000, "static", None),
        # Changes both ways cancel in the cost, not in its error: 100 * sqrt(9) / 2000 is 0.15 points.
        (5, 4, 2000, "few", 4500),
        (22, 23, 4400, "few", 11000),  # 0.1525 points: (0.1525 / 0.1)^2 of 4400 are 10,228
        (45, 45, 10000, "static", None),  # 0.095 points
        # Far from 0.1 points, few images do: 5 of 20 are 25 points, 11.2 for the error.
        (5, 0, 20, "needed", None),
        (0, 5, 20, "static", None),
        (1, 0, 20, "few", 50000),
    ],
)
def test_too_few_images_are_no_grounds_for_advice(lost, gained, images, kind, needed):
    verdict = verdict_on(torch.rand(300, 2), TARGETS, lost, images, gained)
    assert (verdict.kind, verdict.images_needed) == (kind, needed)
    if needed is not None:
        assert verdict.text.startswith(f"Too few images to judge: use at least {needed:,}. Its mean weights ")


def test_too_few_images_a_class_say_nothing_of_the_classes():
    # Two images of each of 150 classes: chance alone puts 149 / 299 of the variance between them.
    verdict = verdict_on(torch.rand(300, 2), torch.arange(300) % 150, 0, 5000)
    assert (verdict.kind, verdict.images_needed) == ("few", 1500)
    assert verdict_on(torch.rand(300, 2), torch.arange(300) % 30, 0, 5000).kind == "static"  # ten of each
    # What a layer is needed for does not matter once it is needed.
    assert verdict_on(torch.rand(300, 2), torch.arange(300) % 150, 100, 5000).kind == "needed"


def test_without_measurements_there_is_no_advice(report):
    assert [verdict.kind for verdict in verdicts(report)] == ["few", "unknown"]
    assert make_static_command(report, "a.safetensors", "data") is None


def test_the_command_names_the_advised_layers():
    report = recorded(nn.Sequential(layer(), routed_block()), torch.rand(60, 2), torch.arange(60) % 3)
    free = tuple(Intervention("mean", (record.name,), 1000, 1000, 900, 0, 0) for record in report.routings)
    text = make_static_command(replace(report, interventions=free), "my run/best.safetensors", "data")
    assert text == ("condconv make-static 'my run/best.safetensors' --data data --layers '0,1.*' -o static.safetensors")
    text = make_static_command(replace(report, interventions=free), "best.safetensors", "torch/cifar10", "my data")
    assert "--data torch/cifar10 --data-dir 'my data' --layers" in text
