"""A checkpoint of a stranger: nothing runs, is fetched, is created or takes memory because the file says so."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

from condconv.cli.main import main
from condconv.errors import TrainingError, UsageError
from condconv.files.checkpoint_format import StoredCheckpoint, open_checkpoint
from condconv.lab.config import TrainConfig
from condconv.lab.data.preprocessing import Preprocessing
from condconv.lab.saved import (
    Reading,
    evaluate_checkpoint,
    inspect_checkpoint,
    load_checkpoint,
    load_network,
    load_trained,
    make_checkpoint_static,
)
from condconv.lab.saved.checkpoint import Checkpoint, save_checkpoint
from condconv.lab.saved.reading import open_labelled
from condconv.lab.train.previous import previous_checkpoint
from condconv.models import create_model
from tests.files.checkpoint_format.samples import forge, forge_from
from tests.lab.samples import make_folder

MODEL = "mobilenet_v1_cc_012_2e"
FACTS = {"size": 8, "channels": 1, "crop": 1.0, "interpolation": "bicubic", "mean": [0.3], "std": [0.4]}
DIGITS = tuple("0123456789")
CPU = Reading(device="cpu", progress=False)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    torch.manual_seed(0)
    config = TrainConfig(data="digits", model=MODEL, out="-", model_options={"output_stride": 4, "first_layer": 14})
    network = create_model(MODEL, num_classes=10, in_chans=1, **config.model_options)
    preprocessing = Preprocessing(8, 1, 1.0, "bicubic", (0.3,), (0.4,))
    path = tmp_path_factory.mktemp("honest") / "best.safetensors"
    save_checkpoint(
        path, Checkpoint(config, config.model_options, DIGITS, preprocessing, (), 898, network.state_dict())
    )
    return path


def uses(path, out):
    """Everything that reads a checkpoint and the data of its run."""
    return (
        lambda: evaluate_checkpoint(path, reading=CPU),
        lambda: inspect_checkpoint(path),
        lambda: make_checkpoint_static(path, out, ["*"]),
    )


@pytest.mark.parametrize(
    ("config", "typed"),
    [
        ({"data": "hfds//srv/images"}, "add --data hfds//srv/images"),
        ({"data": "torch/mnist", "data_dir": "made"}, "add --data torch/mnist --data-dir DIRECTORY"),
        ({"data": "wds/shards"}, "add --data wds/shards"),
        ({"data": "hfds/$(reboot)\x1b[2J"}, "add --data hfds/NAME"),
        ({"data": "/etc"}, "trained on '/etc', got None: a file cannot decide which images are read; add --data DIREC"),
        ({"data": "private" + "/x" * 1000}, "/x/x/x', got None"),
        ({"data": "private/a.tar", "val_data": "private/b.tar"}, "add --data DIRECTORY"),
    ],
)
def test_a_file_does_not_decide_which_images_are_read(tmp_path, honest, monkeypatch, config, typed):
    monkeypatch.chdir(tmp_path)
    path = forge_from(tmp_path / "a.safetensors", honest, config=config)
    for use in uses(path, tmp_path / "out.safetensors"):
        with pytest.raises(UsageError, match="`data` must be given for a network that was trained on ") as caught:
            use()
        assert typed in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 400
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_where_files_are_kept_is_not_taken_from_a_file(tmp_path, honest, monkeypatch):
    """Whoever names torch/NAME says where its files are, or go."""
    monkeypatch.chdir(tmp_path)
    path = forge_from(tmp_path / "a.safetensors", honest, config={"data": "torch/mnist", "data_dir": "made"})
    with pytest.raises(UsageError, match="`data_dir` must say where the files are"):
        evaluate_checkpoint(path, "torch/mnist", reading=CPU)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"data": "hfds/x", "data_options": {"trust_remote_code": True}}}, "`data_options` must be a map"),
        ({"config": {"model_options": {"pretrained_cfg": {"file": "x.pth"}}}}, "`model_options` must be a mapping"),
        ({"model_options": {"pretrained_cfg": {"url": "http://localhost"}}}, "`model_options` must be a mapping"),
        ({"model_options": {"checkpoint_path": "x.pth"}}, "`model_options` must be a mapping"),
        ({"model_options": {"depth_multiplier": 1e9}}, "a depth_multiplier of at most 16, and"),  # no end of blocks
        ({"config": {"image_size": "abc"}}, "`image_size` must be a whole number"),
        (
            {"config": {"image_size": 7}},
            "`image_size` is 7, but images have 8 pixels: take another copy, or train again",
        ),
        ({"preprocessing": {**FACTS, "size": 2048}}, "`image_size` is None, but images have 2048 pixels"),
        ({"config": {"lr": 10**400}}, "`lr` must be a number above 0"),
        ({"config": {"wings": 2}}, "in which there is 'wings': take another copy, or train again"),
        ({"config": {"self": 2}}, "in which there is 'self': take another copy, or train again"),
        ({"config": {"normalization": ["imagenet"]}}, "`normalization` must be one of"),
    ],
)
def test_settings_that_train_would_not_take(tmp_path, honest, changes, message):
    path = forge_from(tmp_path / "a.safetensors", honest, **changes)
    with pytest.raises(UsageError, match="`checkpoint` must hold settings that condconv train takes, got") as caught:
        load_checkpoint(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", [None, "dcd"])
@pytest.mark.parametrize("model", ["nope_cc_1e", "../x", "small_dense_cc_025_99999e", "mobilenet_v2_cc_100_1e"])
def test_a_network_that_cannot_be_built_is_a_fault_of_the_file_by_its_name(tmp_path, honest, model, method):
    path = forge_from(tmp_path / "a.safetensors", honest, config={"model": model, "method": method})
    for use in uses(path, tmp_path / "out.safetensors"):
        with pytest.raises(
            UsageError, match="`checkpoint` must be of a network that can be built, got .*a.safetensors"
        ):
            use()


def test_a_setting_that_is_missing(tmp_path, honest):
    stored = open_checkpoint(honest)
    del stored.header["config"]["data"]
    weights = stored.read("model")
    path = forge(tmp_path / "a.safetensors", stored.header, weights)
    with pytest.raises(UsageError, match="in which 'data' is missing: take another copy, or train again"):
        load_checkpoint(path)


def test_large_images_come_in_small_batches(honest):
    """A file may ask for any size: 64 images of 2048 pixels take 15 GB in a network that hardly halves them."""
    checkpoint = load_checkpoint(honest)
    for size, crop, batch in ((8, 1.0, 64), (512, 1.0, 64), (1024, 1.0, 16), (2048, 0.25, 1)):
        facts = replace(checkpoint.preprocessing, size=size, crop=crop)
        images = open_labelled(replace(checkpoint, preprocessing=facts), "digits")
        assert CPU.loader(images).batch_size == batch
        assert replace(CPU, batch_size=50).loader(images).batch_size == 50


def values_of(config):
    return [None, True, -1, 0.5, 10**400, "x", "", "\x1b[2J", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("name", list(TrainConfig.__dataclass_fields__))
def test_every_setting_with_values_of_other_kinds(tmp_path, honest, name):
    """One sentence, or a value that train takes too."""
    stored = open_checkpoint(honest)
    for value in values_of(name):
        stored.header["config"][name] = value
        try:
            networks_config = TrainConfig(**stored.header["config"])
        except UsageError:
            with pytest.raises(UsageError, match="`checkpoint` must hold settings") as caught:
                load_checkpoint(forge_from(tmp_path / "a.safetensors", honest, config={name: value}))
            assert "\x1b" not in str(caught.value)
        else:
            assert load_checkpoint(forge_from(tmp_path / "a.safetensors", honest, config={name: value})).config == (
                networks_config
            )


def no_reading(self, *parts):
    raise AssertionError("tensors were read")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"model": "mobilenet_v1_cc_100_64e"}}, "of another shape"),
        ({"config": {"model": "resnet_cc_50_8e"}, "model_options": {}}, "it lacks"),
        ({"config": {"model": "mobilenet_v1_cc_012_9999999e"}}, "`num_experts` must be a whole number from 1 to 4,096"),
        ({"config": {"model": "x" * 100_000}}, "`model` must be one of condconv.list_models(), such as "),
        ({"config": {"model": "mobilenet_v1_cc_999_400e"}}, "of another shape"),
        ({"model_options": {"output_stride": 4, "routing": "hidden(999999999)"}}, "`"),
        ({"class_names": [str(number) for number in range(100_000)]}, "classifier.experts.weight"),
        ({"model_options": {"global_pool": None}}, "`model_options` must be what mobilenet_v1_cc_012_2e can be built"),
        (
            {"static_layers": ["no.such"]},
            "`checkpoint` must name conditional layers of its network as static, got no.such",
        ),
        (
            {"stores": {"no.such": "shared(outputs=2)"}},
            "`checkpoint` must name experts that layers of its network can have, got no.such",
        ),
        ({"stores": {"classifier": "shared(kernels=999999999)"}}, "`kernels` must be fewer than the 2 experts, got 99"),
        ({"stores": {"classifier": "shared(outputs=2)"}}, "it lacks"),
        ({"model_options": {f"a{number}": "x" * 200 for number in range(64)}}, " and 56 more ("),
    ],
)
def test_a_small_file_cannot_ask_for_a_large_network(tmp_path, honest, monkeypatch, changes, message):
    """The network is compared on the meta device, which has no memory, before anything is read or built."""
    path = forge_from(tmp_path / "a.safetensors", honest, **changes)
    monkeypatch.setattr(StoredCheckpoint, "read", no_reading)
    with pytest.raises(UsageError) as caught:
        load_trained(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_checkpoint_in_memory_is_compared_before_its_network_is_built(honest):
    checkpoint = load_checkpoint(honest)
    devices = []

    def build(config, num_classes, in_chans):
        devices.append(torch.get_default_device().type)
        return nn.Linear(3, num_classes)

    with pytest.raises(UsageError, match="`checkpoint` must hold the weights of this network"):
        load_network(checkpoint, honest, build=build)
    assert devices == ["meta"]


def test_a_file_with_holes_is_not_read(tmp_path, honest, monkeypatch):
    """Four terabytes that take a few bytes of the disk."""
    stored = open_checkpoint(honest)
    with safetensors.safe_open(honest, framework="pt") as file:
        metadata = file.metadata()
    size = 4 * 2**40
    table = {"__metadata__": metadata}
    table["model.classifier.experts.weight"] = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, size]}
    text = json.dumps(table).encode()
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            os.truncate(path, 8 + len(text) + size)
        except OSError:
            pytest.skip("the file system has no files as large")
    monkeypatch.setattr(StoredCheckpoint, "read", no_reading)
    assert open_checkpoint(path).header == stored.header
    with pytest.raises(UsageError, match=r"it lacks .* of another shape classifier.experts.weight \(1099511627776,\)"):
        load_trained(path)


def test_a_builder_that_needs_values_is_compared_once_it_has_built(honest):
    def build(config, num_classes, in_chans):
        assert nn.Linear(2, 2).weight.sum().item() != 0  # not on the meta device
        return create_model(MODEL, num_classes=num_classes, in_chans=in_chans, **config.model_options)

    checkpoint, network = load_trained(honest, build=build)
    assert not network.training
    assert all(torch.equal(each, checkpoint.model[name]) for name, each in network.state_dict().items())


def test_classes_with_escape_codes_do_not_reach_the_terminal(tmp_path, honest):
    names = [f"\x1b]0;{number}\x07" for number in range(10)]
    path = forge_from(tmp_path / "a.safetensors", honest, class_names=names)
    with pytest.raises(UsageError, match="`data` must have the classes") as caught:
        evaluate_checkpoint(path, reading=CPU)
    assert str(caught.value).isprintable()
    assert "\\x1b]0;0" in str(caught.value)


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        (["evaluate"], "conv_stem.weight", float("nan")),
        (["report", "--out", "a.json"], "classifier.experts.weight", float("-inf")),
        (["make-static", "--layers", "*", "--out", "a.safetensors"], "bn1.running_mean", float("inf")),
        (["export", "--format", "onnx", "--out", "a.onnx"], "bn1.bias", float("nan")),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_a_network_that_has_diverged(tmp_path, honest, capsys, monkeypatch, command, name, value):
    monkeypatch.chdir(tmp_path)
    checkpoint = load_checkpoint(honest)
    checkpoint.model[name].view(-1)[0] = value
    save_checkpoint(Path("bad.safetensors"), checkpoint)
    assert main([command[0], "bad.safetensors", *command[1:]]) == 1
    said = capsys.readouterr().err
    assert f"the network of bad.safetensors has diverged, or the file is damaged: not all values of {name} are" in said


@pytest.mark.parametrize(
    "name",
    ["conv_stem.experts.scale", "conv_stem.experts.centre", "blocks.0.0.routing_fn.temperature"],
)
def test_what_experts_keep_besides_their_kernels_is_finite_too(tmp_path, name):
    options = {"experts": "deltas(scale=0.2)", "routing": "softmax", "first_layer": 1}
    network = create_model(MODEL, num_classes=10, in_chans=1, **options)
    config = TrainConfig(data="digits", model=MODEL, out="-", model_options=options)
    state = network.state_dict()
    state[name] = torch.full_like(state[name], float("nan"))
    facts = Preprocessing(8, 1, 1.0, "bicubic", (0.3,), (0.4,))
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, Checkpoint(config, options, DIGITS, facts, (), 898, state))
    with pytest.raises(TrainingError, match=f"the file is damaged: not all values of {name} are finite"):
        load_trained(path)


def test_a_loss_that_is_not_finite(tmp_path, honest):
    """Of finite weights, whose differences are not."""
    checkpoint = load_checkpoint(honest)
    checkpoint.model["classifier.experts.bias"][..., 0] = 3e38
    checkpoint.model["classifier.experts.bias"][..., 1] = -3e38
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    with pytest.raises(TrainingError, match="has diverged, its loss is inf: take a checkpoint of an earlier epoch"):
        evaluate_checkpoint(tmp_path / "a.safetensors", reading=CPU)


def test_an_optimizer_of_another_network(tmp_path, honest):
    state = {"state": {"7": {"step": 1}}, "param_groups": [{"params": [0, 1]}]}
    path = forge_from(tmp_path / "last.safetensors", honest, optimizer=state)
    with pytest.raises(UsageError, match="must hold the state of its own optimizer, got a parameter's state"):
        load_checkpoint(path)
    config = replace(load_checkpoint(honest).config, out=str(tmp_path))
    with pytest.raises(UsageError, match="must hold the state of its own optimizer"):
        previous_checkpoint(config)


def test_a_folder_is_read_that_the_command_names(tmp_path, honest):
    data = make_folder(tmp_path / "data", train=1, val=1)
    for name in DIGITS:
        shutil.copytree(data / "val" / "cat", data / "val" / name)
    for name in ("cat", "dog"):
        shutil.rmtree(data / "val" / name)
    path = forge_from(tmp_path / "a.safetensors", honest, config={"data": str(data)})
    assert evaluate_checkpoint(path, str(data), reading=CPU).images == 10
