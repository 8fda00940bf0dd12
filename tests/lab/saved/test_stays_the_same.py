"""A saved network computes what it computed, whatever the rules for new networks have become."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from condconv.lab.data import preprocessing
from condconv.lab.saved import image_transform, load_checkpoint, load_network
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import save_checkpoint
from condconv.lab.train import train
from condconv.models.families import FAMILIES
from tests.lab.samples import make_folder, settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch on images of 32 pixels, which no setting mentions the stride of."""
    root = tmp_path_factory.mktemp("stays")
    data = make_folder(root / "data")
    config = settings(root / "run", data=str(data), model="mobilenet_v1_012", image_size=32, epochs=1, batch_size=4)
    return train(config, progress=False), next((data / "val").rglob("*.png"))


def outputs(result, picture):
    checkpoint = load_checkpoint(result.last)
    network = load_network(checkpoint, result.last)
    with torch.inference_mode():
        return network(image_transform(checkpoint)(Image.open(picture))[None])


def test_another_rule_for_the_stride(trained, monkeypatch):
    before = outputs(*trained)
    monkeypatch.setattr(networks, "default_options", lambda config, image_size: {"output_stride": 16})
    assert torch.equal(outputs(*trained), before)


def test_other_rules_for_images(trained, monkeypatch):
    before = outputs(*trained)
    monkeypatch.setattr(preprocessing, "val_crop", lambda size: 0.5)
    monkeypatch.setattr(preprocessing, "normalization_of", lambda config, channels: preprocessing.INCEPTION)
    assert torch.equal(outputs(*trained), before)


def test_another_default_of_the_routing(tmp_path, monkeypatch):
    """Sigmoid and softmax have weights of the same names and shapes."""
    data = make_folder(tmp_path / "data")
    config = settings(
        tmp_path / "run", data=str(data), model="mobilenet_v1_cc_012_2e", image_size=32, epochs=1, batch_size=4
    )
    result = train(config, progress=False)
    picture = next((data / "val").rglob("*.png"))
    before = outputs(result, picture)
    monkeypatch.setitem(FAMILIES, "mobilenet_v1", replace(FAMILIES["mobilenet_v1"], routing="softmax"))
    assert torch.equal(outputs(result, picture), before)


def test_a_resumed_run_keeps_what_it_began_with(tmp_path, trained, monkeypatch):
    result, _ = trained
    began = load_checkpoint(result.last)
    config = replace(began.config, out=str(tmp_path), epochs=2)
    save_checkpoint(tmp_path / "last.safetensors", replace(began, config=config))
    monkeypatch.setattr(networks, "default_options", lambda config, image_size: {"output_stride": 16})
    monkeypatch.setattr(preprocessing, "val_crop", lambda size: 0.5)
    ended = load_checkpoint(train(config, progress=False).last)
    assert ended.epoch == 2
    assert ended.model_options == began.model_options == {"output_stride": 8}
    assert ended.preprocessing == began.preprocessing


def test_what_is_resolved(tmp_path):
    def resolved(model, image_size, **options):
        return networks.resolved_options(settings(tmp_path, model=model, model_options=options), image_size)

    assert resolved("mobilenet_v1_050", 224, drop_rate=0.1) == {"drop_rate": 0.1, "output_stride": 32}
    assert resolved("resnet_cc_18_2e", 64, init="same_output", expert_spread=0.1, routing="softmax") == {
        "output_stride": 16,
        "routing": "softmax",
        "experts": "dense",
        "scope": "block",
    }
    assert resolved("small_dense_cc_100_2e", 16, se=0.5) == {
        "output_stride": 4,
        "routing": "sigmoid(standardize=True)",
        "experts": "deltas",
        "scope": "block",
        "se": 0.5,
    }
    assert resolved("tf_efficientnet_b0", 224, pretrained_cfg="in1k") == {"output_stride": 32}
    assert resolved("branches", 32, base="mobilenet_v1_025", branches=2) == {
        "base": "mobilenet_v1_025",
        "branches": 2,
        "output_stride": 8,
    }
    assert resolved("mine", 32, init="same_output") == {"init": "same_output"}
