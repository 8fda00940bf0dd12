import html
import json
import re
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from condconv.analysis import Intervention, charts, choose_pictures, headline, make_picture, render_page, save_page
from condconv.analysis.pictures import shown
from tests.analysis.samples import layer, recorded, routed_block

NASTY = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "<!--<script>", "a & b 'c' \"d\"")


def report_of(class_names=NASTY):
    network = nn.Sequential(layer(), routed_block())
    targets = torch.arange(24) % len(class_names)
    inputs = torch.rand(24, 2) * (1 + targets[:, None]) / len(class_names)
    report = recorded(network, inputs, targets, class_names)
    measured = [Intervention("learned", (), 24, 24, 20, 0, 0), Intervention("mean", (), 24, 20, 18, 1, 3)]
    measured += [Intervention("mean", (record.name,), 24, 24, 20, 0, 0) for record in report.routings]
    return replace(report, interventions=tuple(measured))


def content(page: str):
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])


def test_names_cannot_leave_their_place():
    picture = make_picture(Image.new("RGB", (8, 8)), NASTY[0])
    report = report_of()
    page = render_page(report, title=NASTY[0], subtitle=NASTY[1], pictures={0: picture}, command=NASTY[1])
    # The page without its scripts: what is left is the template's own markup.
    markup = page.replace(resources.files("condconv.analysis").joinpath("template/page.js").read_text(), "")
    assert "alert(1)</script>" not in markup
    assert "<img src=x" not in markup
    assert "<!--" not in markup.split('id="report-data">')[1].split("</script>")[0]
    assert f"<title>{html.escape(NASTY[0])}</title>" in page
    # Everything is there all the same, as text.
    found = content(page)
    assert found["title"] == NASTY[0]
    assert found["headline"] == headline(report)
    assert {name for name, _ in found["layers"][0]["experts"][0]["classes"]} == set(NASTY)
    # Plotly reads a part of HTML in labels, so there the names are escaped.
    labels = found["layers"][0]["charts"]["heatmap"]["data"][0]["y"]
    assert {label.replace("<br>", "") for label in labels} == {html.escape(name, quote=False) for name in NASTY}


def test_markers_in_names_are_not_filled_in():
    page = render_page(report_of(("{{plotly}}", "{{data}}", "c")), title="{{script}}")
    assert content(page)["title"] == "{{script}}"


def test_the_page_forbids_itself_every_request():
    page = render_page(report_of())
    assert "default-src 'none'" in page
    # No element before the embedded library names another address.
    assert not re.search(r'(?:src|href)="(?!#|data:)', page.split("<script>")[0])


def test_the_page_holds_the_statistics():
    report = report_of(("a", "b", "c"))
    found = content(render_page(report))
    record = report.routings[0]
    assert found["layers"][0]["share"] == pytest.approx(record.between_class_share)
    assert found["layers"][1]["layers"] == ["1.first", "1.second"]
    assert [each["name"] for each in found["interventions"]] == ["learned", "mean"]
    heatmap = found["layers"][0]["charts"]["heatmap"]["data"][0]
    assert set(heatmap["y"]) == set("abc")
    for name, row in zip(heatmap["y"], heatmap["z"], strict=True):
        assert row == pytest.approx(record.class_mean["abc".index(name)].tolist(), abs=1e-4)
    spread = found["layers"][0]["charts"]["spread"]["data"]
    between, within = record.variances
    assert spread[0]["y"] == pytest.approx(between.sqrt().tolist(), abs=1e-4)
    assert spread[1]["y"] == pytest.approx(within.sqrt().tolist(), abs=1e-4)
    assert sum(found["layers"][0]["charts"]["histogram"]["data"][0]["y"]) == pytest.approx(100, abs=0.01)
    assert found["charts"]["share"]["data"][0]["y"][0] == pytest.approx(100 * record.between_class_share, abs=1e-4)
    assert found["charts"]["cost"]["data"][0]["y"] == [0, 0]
    assert "wasted" not in found["charts"]
    assert found["layers"][0]["verdict"]["kind"] == "few"


def test_rows_of_the_heatmap_stay_with_their_names():
    means = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2]])  # the first and the last are alike
    report = recorded(nn.Sequential(layer()), means, torch.arange(3), ("a", "b", "c"))
    heatmap = content(render_page(report))["layers"][0]["charts"]["heatmap"]["data"][0]
    assert heatmap["y"] != ["a", "b", "c"]
    assert dict(zip(heatmap["y"], heatmap["z"], strict=True)) == {"a": [0.9, 0.1], "b": [0.1, 0.9], "c": [0.8, 0.2]}


def test_images_without_classes_have_a_page_too():
    report = recorded(nn.Sequential(layer()), torch.rand(5, 2))
    measured = (Intervention("learned", (), 5, 5), Intervention("mean", ("0.routing_fn",), 5, 4))
    found = content(render_page(replace(report, interventions=measured)))
    assert set(found["charts"]) == {"effective", "kernels", "cost"}
    assert set(found["layers"][0]["charts"]) == {"histogram"}
    assert found["charts"]["cost"]["data"][0]["y"] == [20]  # one of five predictions


def test_a_class_that_was_not_seen_is_left_blank():
    report = recorded(nn.Sequential(layer()), torch.rand(4, 2), torch.tensor([0, 1, 0, 1]), ("a", "b", "never"))
    found = content(render_page(report))
    heatmap = found["layers"][0]["charts"]["heatmap"]["data"][0]
    assert heatmap["y"][-1] == "never"
    assert heatmap["z"][-1] == [None, None]
    assert [name for name, _ in found["layers"][0]["experts"][0]["classes"]] != []
    assert "never" not in [name for name, _ in found["layers"][0]["experts"][0]["classes"]]


def test_dead_and_duplicate_experts_are_said():
    network = nn.Sequential(layer())
    with torch.no_grad():
        network[0].weight[1] = 2 * network[0].weight[0]
    report = recorded(network, torch.tensor([[0.9, 0.01], [0.8, 0.0]]))
    found = content(render_page(report))
    assert [expert["dead"] for expert in found["layers"][0]["experts"]] == [False, True]
    assert [expert["twins"] for expert in found["layers"][0]["experts"]] == [[2], [1]]
    assert [trace["y"] for trace in found["charts"]["wasted"]["data"]] == [[1], [1]]
    assert found["charts"]["wasted"]["layout"]["yaxis"]["dtick"] == 1


def test_like_classes_stand_together():
    means = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 0.9], [float("nan")] * 2, [0.9, 0.1]], dtype=torch.float64)
    order = charts.class_order(means)
    assert order[-1] == 3
    assert {frozenset(order[:2]), frozenset(order[2:4])} == {frozenset((0, 2)), frozenset((1, 4))}
    assert charts.class_order(means[2:4]) == [0, 1]


def test_long_names_are_broken_and_shortened():
    names = ("W" * 80, "<b>" * 12, "short")
    report = recorded(nn.Sequential(layer()), torch.rand(6, 2), torch.arange(6) % 3, names)
    figure = charts.layer(report.routings[0], names)["heatmap"]
    lines = {name: name.split("<br>") for name in figure["data"][0]["y"]}
    assert {tuple(map(len, map(html.unescape, each))) for each in lines.values()} == {(32, 32, 16), (32, 4), (5,)}
    assert {html.unescape("".join(each)) for each in lines.values()} == set(names)
    assert set(figure["narrow"]["ticktext"]) == {"W" * 9 + "…", html.escape("<b>" * 3) + "…", "short"}


def test_routing_of_the_whole_network_says_so():
    report = recorded(routed_block(), torch.rand(6, 2))
    assert [each["title"] for each in content(render_page(report))["layers"]] == ["the whole network"]


def test_a_thousand_classes_are_drawn_without_labels():
    names = tuple(f"class {index}" for index in range(300))
    report = recorded(nn.Sequential(layer()), torch.rand(600, 2), torch.arange(600) % 300, names)
    figure = charts.layer(report.routings[0], names)["heatmap"]
    assert len(figure["data"][0]["z"]) == 300
    assert figure["layout"]["yaxis"]["showticklabels"] is False
    assert figure["layout"]["height"] <= 760


def test_pictures_are_small_and_the_best_come_first():
    wide = make_picture(Image.fromarray(np.zeros((100, 400), dtype=np.uint8)), "wide")
    assert wide.source.startswith("data:image/jpeg;base64,")
    report = recorded(nn.Sequential(layer(), layer()), torch.rand(50, 2), top_examples=5)
    chosen = choose_pictures(report, 7)
    assert len(chosen) == len(set(chosen)) == 7
    last, first = report.routings[1], report.routings[0]
    # Rank by rank, the last layer before the first
    best = dict.fromkeys([*last.top_ids[:, 0].tolist(), *first.top_ids[:, 0].tolist()])
    assert chosen[: len(best)] == list(best)
    kept = shown([4, 9], [0.5, 0.25], {9: wide})
    assert kept == [{"id": 9, "weight": 0.25}]


def test_the_template_is_part_of_the_package():
    folder = resources.files("condconv.analysis") / "template"
    assert {each.name for each in folder.iterdir()} >= {"page.html", "page.css", "charts.js", "page.js"}


def test_a_report_is_saved_as_a_page(tmp_path):
    save_page(report_of(), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
