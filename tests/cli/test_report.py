import json
import re
from pathlib import Path

import pytest
import torch

from condconv.analysis import RoutingReport
from condconv.cli.main import main
from condconv.errors import UsageError
from condconv.lab.saved import Reading
from tests.cli.conftest import CLASSES
from tests.lab.samples import make_folder


def report(untrained, out, *more, data=None) -> int:
    checkpoint, own = untrained
    arguments = [str(checkpoint), "-o", str(out), "--data", str(data or own), "--device", "cpu", "--quiet"]
    return main(["report", *arguments, *map(str, more)])


def fails(capsys, argv) -> str:
    assert main(list(map(str, argv))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def content(path: Path):
    page = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])


def test_a_page_of_the_validation_images(untrained, tmp_path, capsys):
    assert report(untrained, tmp_path / "a.html") == 0
    said = capsys.readouterr().out
    first = said.splitlines()[0]
    assert re.match(
        r"(Routing depends on the image|All images get almost the same kernels, because .*): weights ", first
    )
    assert " With the same weights for every image, accuracy " in first
    assert re.search(r"^learned +\d+\.\d\d%$", said, re.MULTILINE)
    assert f"report: {tmp_path / 'a.html'}" in said
    # Nine images carry no verdict, and no advice.
    assert re.search(
        r"^undecided: \d of 9 routing functions, on too few images, 9: it takes about \d+0 \(--layer", said, re.M
    )
    assert "advised" not in said
    assert {layer["verdict"]["kind"] for layer in content(tmp_path / "a.html")["layers"]} <= {"few", "needed"}
    found = content(tmp_path / "a.html")
    assert found["headline"] == first
    assert (found["images"], found["classes"]) == (9, 3)
    assert [len(layer["layers"]) for layer in found["layers"]] == [2] * 8 + [1]
    assert {each["id"] for each in found["layers"][-1]["experts"][0]["images"]} == set(range(9))
    captions = {caption for _, caption in found["pictures"].values()}
    assert captions == {f"{name}: {index}.png" for name in CLASSES for index in range(3)}
    assert "<img src=x" not in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_pictures_belong_to_the_numbers_of_the_report(untrained, tmp_path):
    """The weight beside a picture is the one that the network gives this very image."""
    from condconv.analysis import changed_routing
    from condconv.lab.saved import load_checkpoint, load_network
    from condconv.lab.saved.reading import open_images

    assert report(untrained, tmp_path / "a.html") == 0
    layer = content(tmp_path / "a.html")["layers"][-1]
    checkpoint = load_checkpoint(untrained[0])
    network = load_network(checkpoint, untrained[0])
    images, _ = open_images(checkpoint, str(untrained[1]))
    pictures = content(tmp_path / "a.html")["pictures"]
    best = layer["experts"][0]["images"][0]
    caption = pictures[str(best["id"])][1]
    (index,) = [
        number
        for number in range(len(images))
        if caption == f"{CLASSES[images[number][1]]}: {Path(images.filename(number)).name}"
    ]
    seen: dict[str, torch.Tensor] = {}
    with changed_routing(network, lambda name, weights: seen.setdefault(name, weights)), torch.inference_mode():
        network(images[index][0][None])
    assert seen["classifier.routing_fn"][0, 0].item() == pytest.approx(best["weight"], abs=6e-4)


def test_at_most_so_many_images_and_a_json_file(untrained, tmp_path, capsys):
    assert report(untrained, tmp_path / "a.json", "--max-images", 4, "--layer-images", 2, "--batch-size", 3) == 0
    read = RoutingReport.load(tmp_path / "a.json")
    assert {int(record.examples) for record in read.routings} == {4}
    whole = {each.name: each.images for each in read.interventions if not each.routings}
    assert whole.pop("shuffled") == 3  # the last image is alone in its batch
    assert set(whole.values()) == {4}
    assert {each.images for each in read.interventions if len(each.routings) == 1} <= {2, 4}
    assert ", on too few images, 2: it takes about " in capsys.readouterr().out
    assert report(untrained, tmp_path / "b.json", "--max-images", 4, "--layer-images", 2, "--batch-size", 2) == 0
    # The choice of images does not depend on the batches.
    again = RoutingReport.load(tmp_path / "b.json")
    assert torch.allclose(read.routings[-1].class_sums, again.routings[-1].class_sums, atol=1e-5)


def test_images_without_classes(untrained, tmp_path, capsys):
    loose = tmp_path / "loose"
    loose.mkdir()
    for index, path in enumerate(sorted((untrained[1] / "val").rglob("*.png"))):
        (loose / f"{index}.png").write_bytes(path.read_bytes())
    assert report(untrained, tmp_path / "a.html", data=loose) == 0
    assert "100.00 % predicted as before" in capsys.readouterr().out
    found = content(tmp_path / "a.html")
    assert (found["images"], found["classes"]) == (9, None)
    assert {caption for _, caption in found["pictures"].values()} == {f"{index}.png" for index in range(9)}


def test_an_unreadable_image_is_fatal_or_left_out(untrained, tmp_path, capsys):
    data = make_folder(tmp_path / "data", CLASSES)
    (data / "val" / "cat" / "0.png").write_bytes(b"no image")
    argv = ["report", untrained[0], "--data", data, "-o", tmp_path / "a.html", "--device", "cpu", "--quiet"]
    assert "`data` must hold readable images" in fails(capsys, argv)
    assert not (tmp_path / "a.html").exists()
    assert report(untrained, tmp_path / "a.html", "--on-bad-image", "skip", data=data) == 0
    found = content(tmp_path / "a.html")
    assert found["images"] == 8
    assert "cat: 0.png" not in {caption for _, caption in found["pictures"].values()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.pdf"], "`out` must end in .html or .json, got a.pdf"),
        (["-o", "no/such/a.html"], "`out` must be in a directory that exists, got no/such/a.html: make "),
        (["--max-images", "0"], "`--max-images` must be a whole number from 1 to 1,000,000,000, got 0"),
        (["--layer-images", "0"], "`--layer-images` must be a whole number from 1 to 1,000,000,000, got 0"),
        (["--data", "no/such"], "got no/such"),
    ],
)
def test_wrong_arguments(untrained, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, ["report", untrained[0], *arguments])


def test_an_empty_folder(untrained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    argv = ["report", untrained[0], "--data", tmp_path / "empty", "-o", tmp_path / "a.html"]
    assert "`data` must hold images or class folders with images" in fails(capsys, argv)


def test_how_images_are_read_is_checked():
    with pytest.raises(UsageError, match="`device` must be one of auto, cpu, got 'cuda:0'"):
        Reading(device="cuda:0")
    with pytest.raises(UsageError, match="`on_bad_image` must be one of error, skip, got 'Skip'"):
        Reading(on_bad_image="Skip")
