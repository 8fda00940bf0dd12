import functools
import os
import re
from dataclasses import replace

import pytest
import torch

from condconv.analysis import changed_routing
from condconv.cli.main import main
from condconv.lab.config import TrainConfig
from condconv.lab.data.preprocessing import Preprocessing
from condconv.lab.saved import load_checkpoint, load_network, making_static
from condconv.lab.saved.checkpoint import Checkpoint, save_checkpoint
from condconv.lab.saved.inspection import record
from condconv.lab.saved.reading import Reading, open_images
from condconv.models import create_model
from condconv.nn import ConditionalLayer
from tests.cli.test_report import fails, report
from tests.lab.samples import make_folder


def make_static(checkpoint, out, layers, *more, data=None) -> int:
    arguments = [str(checkpoint), "-o", str(out), "--layers", layers, "--device", "cpu", "--quiet", *map(str, more)]
    return main(["make-static", *arguments, *(("--data", str(data)) if data else ())])


@functools.cache  # each file is written once, and building a network takes a second
def conditional(path) -> list[str]:
    network = load_network(load_checkpoint(path), path)
    return [name for name, module in network.named_modules() if isinstance(module, ConditionalLayer)]


def test_the_static_network_is_that_of_the_mean_weights(untrained, tmp_path, capsys):
    path, data = untrained
    out = tmp_path / "static.safetensors"
    last = conditional(path)[-3:]  # the last block and the classifier
    assert make_static(path, out, ",".join(last), data=data) == 0
    said = capsys.readouterr().out
    assert "mean over    18 images" in said  # the training images: six of each of three classes
    assert re.search(r"top-1 +\d+\.\d\d % -> \d+\.\d\d % \([+-]\d+\.\d\d points, 9 images\)", said)
    assert conditional(out) == conditional(path)[:-3]
    checkpoint = load_checkpoint(path)
    network = load_network(checkpoint, path)
    images, _ = open_images(checkpoint, str(data / "train"))
    reading = Reading(progress=False)
    found = record(network, reading.read(images, reading.choose(images), ""), None)
    routings = {found.routing(name).name: found.routing(name).mean_vector for name in last}
    assert len(routings) == 2
    x = torch.randn(2, 3, 16, 16)
    with changed_routing(network, lambda name, weights: routings[name].to(weights).expand_as(weights), routings):
        expected = network(x)
    static = load_checkpoint(out)
    assert torch.allclose(load_network(static, out)(x), expected, atol=1e-4)
    assert static.static_layers == tuple(last)
    assert not any(name.startswith(tuple(routings)) for name in static.model)


def test_class_folders_may_be_called_as_splits_are(tmp_path):
    classes = ("cat", "train", "val")
    root = make_folder(tmp_path / "data", classes, train=4, val=2)
    config = TrainConfig(data="torch/x", model="m", out="-", data_dir="elsewhere", data_options={"input_key": "a"})
    colour = Preprocessing(8, 3, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    checkpoint = Checkpoint(config, {}, classes, colour, (), 12, {})
    for split, count in (("train", 12), ("val", 6)):
        images, labelled = open_images(checkpoint, str(root), split=split)
        assert (len(images), images.class_names, labelled) == (count, classes, True)


@pytest.mark.slow
def test_a_static_checkpoint_is_evaluated_reported_and_made_static_further(untrained, tmp_path, capsys):
    path, data = untrained
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    names = conditional(path)
    assert make_static(path, once, names[0], "--no-evaluate", "--max-images", 5, data=data) == 0
    said = capsys.readouterr().out
    assert "top-1" not in said
    assert "mean over    5 images" in said
    assert main(["evaluate", str(once), "--data", str(data), "--device", "cpu", "--quiet"]) == 0
    assert report((once, data), tmp_path / "a.json") == 0
    assert make_static(once, twice, "*", "--no-evaluate", data=data) == 0
    assert conditional(twice) == []
    assert set(load_checkpoint(twice).static_layers) == set(names)
    argv = ["report", twice, "--data", data, "-o", tmp_path / "b.html", "--device", "cpu", "--quiet"]
    assert "`network` must have a conditional layer" in fails(capsys, argv)


def test_images_without_classes_give_a_mean_and_no_accuracy(untrained, tmp_path, capsys):
    path, data = untrained
    loose = data / "val" / "cat"  # three images, and no folder inside
    assert make_static(path, tmp_path / "a.safetensors", "classifier", data=loose) == 0
    said = capsys.readouterr().out
    assert "mean over    3 images" in said
    assert "top-1        not measured: the images have no classes" in said


def test_data_with_a_name_gives_its_training_images(untrained, tmp_path, capsys):
    checkpoint = load_checkpoint(untrained[0])
    network = create_model(checkpoint.config.model, num_classes=10, in_chans=1, output_stride=8)
    digits = replace(
        checkpoint,
        config=replace(checkpoint.config, data="digits"),
        class_names=tuple("0123456789"),
        preprocessing=Preprocessing(8, 1, 1.0, "bicubic", (0.3,), (0.4,)),
        model=network.state_dict(),
    )
    save_checkpoint(tmp_path / "digits.safetensors", digits)
    assert make_static(tmp_path / "digits.safetensors", tmp_path / "a.safetensors", "classifier", "--no-evaluate") == 0
    assert "mean over    898 images" in capsys.readouterr().out


def test_wrong_layers_and_outputs_are_refused(untrained, tmp_path, capsys):
    path, data = untrained
    start, end = (
        ["make-static", path, "--data", data, "--layers"],
        ["-o", tmp_path / "a.safetensors", "--device", "cpu", "--quiet"],
    )
    assert "`layers` must match conditional layers of the network, got 'x*' for none: near names are " in fails(
        capsys, [*start, "classifier,x*", *end]
    )
    assert "`layers` must be a pattern of names, several, or a function" in fails(capsys, [*start, ",", *end])
    assert not (tmp_path / "a.safetensors").exists()


def test_the_output_is_checked_before_any_work(untrained, tmp_path, capsys, monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("the checkpoint was read")

    monkeypatch.setattr(making_static, "load_trained", work)
    path, _ = untrained
    link, other, readonly = tmp_path / "link", tmp_path / "other.safetensors", tmp_path / "readonly"
    link.symlink_to(path)
    other.write_bytes(b"a network of days")
    readonly.mkdir()
    for out, message in (
        (path, "`out` must be another file than the checkpoint"),
        (link, "`out` must be another file than the checkpoint"),
        (other, f"`out` must be a new file, got {other}, which exists: give a new name, or --force to replace it"),
        (tmp_path, f"`out` must be a file, got {tmp_path}, which is a directory"),
        (tmp_path / "no" / "a.safetensors", "`out` must be in a directory that exists"),
    ):
        assert message in fails(capsys, ["make-static", path, "--layers", "classifier", "-o", out])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said = fails(capsys, ["make-static", path, "--layers", "*", "-o", pipe, "--force"])
    assert f"got {pipe}, a pipe or a device: remove it, or give another --out" in said
    assert "another file than the checkpoint" in fails(
        capsys, ["make-static", path, "--layers", "*", "-o", link, "--force"]
    )
    monkeypatch.setattr(os, "access", lambda path, mode: path != readonly)  # root may write anywhere
    argv = ["make-static", path, "--layers", "classifier", "-o", readonly / "a.safetensors"]
    assert "`out` must be in a directory that can be written to" in fails(capsys, argv)
    assert other.read_bytes() == b"a network of days"


def test_an_existing_file_is_replaced_by_force(untrained, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not needed any more")
    assert make_static(untrained[0], other, "classifier", "--no-evaluate", "--force", data=untrained[1]) == 0
    assert load_checkpoint(other).static_layers == ("classifier",)


def test_layers_that_are_skipped_stay_conditional(untrained, tmp_path):
    path, data = untrained
    out, names = tmp_path / "static.safetensors", conditional(path)
    more = ["--skip", f"{names[0]}, {names[1]}", "--no-evaluate", "--data", data]
    assert make_static(path, out, "classifier,*", *more) == 0
    assert conditional(out) == names[:2]
    assert load_checkpoint(out).static_layers == tuple(names[2:])


def test_a_folder_of_a_datasets_name_is_not_the_dataset(tmp_path, monkeypatch, capsys):
    """Digits are embedded; a folder of that name would be taken by its path, digits/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / "x").mkdir(parents=True)
    config = TrainConfig(data="digits", model="mobilenet_v1_cc_025_2e", out="-", model_options={"output_stride": 4})
    network = create_model(config.model, num_classes=10, in_chans=1, output_stride=4)
    classes = tuple(map(str, range(10)))
    grey = Preprocessing(8, 1, 1.0, "bicubic", (0.5,), (0.5,))
    saved = Checkpoint(config, config.model_options, classes, grey, (), 898, network.state_dict())
    save_checkpoint(tmp_path / "digits.safetensors", saved)
    assert make_static("digits.safetensors", "static.safetensors", "blocks.4.1.*") == 0
    said = capsys.readouterr().out
    assert "mean over    898 images" in said
    assert "899 images)" in said
    (tmp_path / "digits" / "x").rmdir()
    images, labelled = open_images(saved, "digits")
    assert (len(images), labelled) == (899, True)
