"""Trained weights, timm's and one's own, in networks that have experts."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import condconv
from condconv import create_model
from condconv.errors import UsageError
from condconv.models.names import parse_name
from condconv.models.pretrained import describe_weights
from condconv.nn import ConditionalLayer

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
V1 = "mobilenet_v1_cc_100_2e"


def with_statistics(model: nn.Module) -> nn.Module:
    """Return a network that looks trained: no norm is as it began, so a tensor left behind shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    torch.manual_seed(5)
    return with_statistics(timm.create_model("mobilenetv1_100"))


def started(name: str, source: nn.Module, **options: object) -> nn.Module:
    overlay = {"state_dict": source.state_dict()}
    return create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()


def close(output: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"first_layer": 1}, {"scope": "network"}, {"routing": "softmax", "init": "same_output", "expert_spread": 2.5}],
    ids=str,
)
def test_a_network_computes_what_the_static_one_does(mobilenet: nn.Module, options: dict) -> None:
    model = started(V1, mobilenet, **options)
    close(model(X), mobilenet(X))
    layer = model.get_submodule("blocks.4.1.conv_pw")
    assert isinstance(layer, ConditionalLayer)
    assert not torch.equal(layer.weight[0], layer.weight[1])
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)  # what the weights were trained on
    assert model.pretrained_cfg["architecture"] == f"condconv_{V1}"


@torch.no_grad()
def test_static_networks_take_the_same_way(mobilenet: nn.Module) -> None:
    assert torch.equal(started("mobilenet_v1_100", mobilenet)(X), mobilenet(X))


@torch.no_grad()
@pytest.mark.parametrize("scope", ["block", "network"])
def test_other_classes_have_a_new_classifier(mobilenet: nn.Module, scope: str) -> None:
    """timm's share of the work: the classifier of 1000 is left out, the rest is there."""
    torch.manual_seed(0)
    fresh = create_model("mobilenet_v1_100", num_classes=7)
    torch.manual_seed(0)
    model = started(V1, mobilenet, num_classes=7, scope=scope)
    close(model.forward_features(X), mobilenet.forward_features(X))
    close(model(X), fresh.get_classifier()(mobilenet.forward_head(mobilenet.forward_features(X), pre_logits=True)))


@torch.no_grad()
def test_no_classes(mobilenet: nn.Module) -> None:
    close(
        started(V1, mobilenet, num_classes=0)(X), mobilenet.forward_head(mobilenet.forward_features(X), pre_logits=True)
    )


@torch.no_grad()
@pytest.mark.parametrize("first_layer", [1, None])
def test_one_channel_is_the_sum_of_three(mobilenet: nn.Module, first_layer: int | None) -> None:
    """As timm adapts a stem: a grey image gives what the same image in three channels gave."""
    grey = X[:, :1]
    model = started(V1, mobilenet, in_chans=1, first_layer=first_layer)
    close(model(grey), mobilenet(grey.expand(-1, 3, -1, -1)))


@torch.no_grad()
@pytest.mark.parametrize("out_indices", [(0, 4), (3,)])
def test_features(mobilenet: nn.Module, out_indices: tuple[int, ...]) -> None:
    model = started(V1, mobilenet, features_only=True, out_indices=out_indices)
    expected = mobilenet.forward_intermediates(X, indices=list(out_indices), intermediates_only=True)
    for found, one in zip(model(X), expected, strict=True):
        close(found, one)


@torch.no_grad()
def test_features_of_a_network_cut_short() -> None:
    """timm builds a ResNet for features up to the last map asked for; what comes after is not missed."""
    source = with_statistics(timm.create_model("resnet18"))
    options = {"features_only": True, "out_indices": (2,), "first_layer": 4}
    (found,) = started("resnet_cc_18_2e", source, **options)(X)
    close(found, source.forward_intermediates(X, indices=[2], intermediates_only=True)[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hook", "getter"])
def test_features_of_a_network_that_timm_wraps(mobilenet: nn.Module, kind: str) -> None:
    """A getter leaves out what comes after the last map, blocks among them."""
    model = started(V1, mobilenet, features_only=True, out_indices=(0, 3), feature_cls=kind)
    expected = mobilenet.forward_intermediates(X, indices=[0, 3], intermediates_only=True)
    for found, one in zip(model(X), expected, strict=True):
        close(found, one)


@torch.no_grad()
def test_the_authors_weights_where_timm_has_them() -> None:
    source = timm.create_model("tf_efficientnet_cc_b0_4e").eval()
    for name, parameter in source.named_parameters():
        if "routing_fn" in name:
            parameter.normal_()
    model = started("tf_efficientnet_cc_b0_4e", source)
    close(model(X), source(X))
    assert model.pretrained_cfg["mean"] == source.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    other = started("tf_efficientnet_cc_b0_4e", source, num_classes=3)
    close(other.forward_features(X), source.forward_features(X))


@pytest.mark.slow
@torch.no_grad()
def test_the_authors_deeper_network() -> None:
    source = timm.create_model("tf_efficientnet_cc_b1_8e").eval()
    close(started("tf_efficientnet_cc_b0_depth_8e", source)(X), source(X))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mobilenet_v1_100", "timm/mobilenetv1_100.ra4_e3600_r224_in1k"),
        (V1, "timm/mobilenetv1_100.ra4_e3600_r224_in1k"),
        ("resnet_cc_50_4e", "timm/resnet50.a1_in1k"),
        ("tf_efficientnet_cc_b0_8e", "timm/tf_efficientnet_cc_b0_8e.in1k"),
        ("tf_efficientnet_cc_b0_depth_8e", "timm/tf_efficientnet_cc_b1_8e.in1k"),
        ("tf_efficientnet_cc_b0_depth_4e", "timm/tf_efficientnet_b1.ns_jft_in1k"),  # the authors released none
    ],
)
def test_where_weights_come_from(name: str, place: str) -> None:
    assert describe_weights(parse_name(name)).hf_hub_id == place


@pytest.mark.parametrize("name", ["efficientnet_b0_depth", "tf_efficientnet_cc_b0_depth_8e"])
def test_images_of_the_deeper_b0_are_those_of_b0(name: str) -> None:
    """timm's B1 has 240 pixels or 256, the paper's B0 of depth 1.1 has 224."""
    b0, depth = (describe_weights(parse_name(each)) for each in ("efficientnet_b0", name))
    fields = ("input_size", "pool_size", "crop_pct", "test_input_size", "test_crop_pct")
    assert [getattr(b0, field) for field in fields] == [getattr(depth, field) for field in fields]
    assert depth.input_size == (3, 224, 224)
    asked = describe_weights(parse_name(name), None, {"input_size": (3, 64, 64)})
    assert (asked.input_size, asked.crop_pct) == ((3, 64, 64), 0.875)
    assert describe_weights(parse_name(name), {"input_size": (3, 240, 240)}).input_size == (3, 240, 240)


def test_without_pretrained_the_description_is_timms_all_the_same() -> None:
    model = create_model(
        "resnet_cc_18_2e", pretrained_cfg="a1_in1k", pretrained_cfg_overlay={"crop_pct": 0.5}, cache_dir="x"
    )
    assert (model.pretrained_cfg["tag"], model.pretrained_cfg["crop_pct"]) == ("a1_in1k", 0.5)
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(nope\) for resnet18"):
        create_model("resnet_cc_18_2e", pretrained_cfg="nope")
    with pytest.raises(
        UsageError, match="`pretrained_cfg` must not be a tag for 'mobilenet_v1_050', got 'in1k': leave"
    ):
        create_model("mobilenet_v1_050", pretrained_cfg="in1k")
    with warnings.catch_warnings(record=True) as caught:
        assert create_model("mobilenet_v1_050").pretrained_cfg["first_conv"] == "conv_stem"
    assert not caught


AUTHORS = "tf_efficientnet_cc_b0_4e"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mobilenet_v1_025",
            {},
            "`pretrained` must be False for 'mobilenet_v1_025', got True: no weights are published",
        ),
        ("mobilenet_v2_cc_060_2e", {}, "`pretrained` must be False for 'mobilenet_v2_cc_060_2e'"),
        (V1, {"init": "random"}, "`init` must be None with pretrained, got 'random'"),
        (AUTHORS, {"init": "same_output"}, "`init` must be None with pretrained, got 'same_output'"),
        (AUTHORS, {"routing": "softmax"}, "`routing` must be \"sigmoid\" with the weights of .*, got 'softmax'"),
    ],
)
def test_what_would_be_lost_or_wrong(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(name, pretrained=True, **options)


def test_weights_that_do_not_fit(mobilenet: nn.Module) -> None:
    state = mobilenet.state_dict()
    del state["blocks.4.1.conv_pw.weight"]
    with pytest.raises(UsageError, match=r"got a state dict: it lacks blocks\.4\.1\.conv_pw\.weight"):
        create_model(V1, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    state = mobilenet.state_dict() | {"extra.weight": torch.zeros(1)}
    headless = {name: tensor for name, tensor in mobilenet.state_dict().items() if not name.startswith("classifier.")}
    with pytest.raises(UsageError, match=r"it lacks classifier\.weight"):
        create_model(V1, pretrained=True, pretrained_cfg_overlay={"state_dict": headless})
    with pytest.raises(UsageError, match=r"the network has no extra\.weight"):
        create_model(V1, pretrained=True, num_classes=3, pretrained_cfg_overlay={"state_dict": state})
    authors = timm.create_model(AUTHORS)
    with pytest.raises(UsageError, match="sigmoid.* got SoftmaxRouting"):
        started(AUTHORS, authors, routing="softmax")


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{"routing": "softmax", "first_layer": 1}, {"init": "random", "scope": "layer"}, {"init": "same_output"}],
    ids=str,
)
def test_a_network_of_ones_own_comes_back_from_a_folder(tmp_path: Path, options: dict) -> None:
    condconv.register_timm_models()
    name = "condconv_mobilenet_v1_cc_025_2e"
    model = with_statistics(timm.create_model(name, num_classes=7, **options))
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(X), model(X))
    assert again.num_classes == 7
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert torch.equal(other.forward_features(X), model.forward_features(X))
    assert other(X).shape == (2, 3)
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()(X)
    assert torch.equal(maps[-1], model.forward_features(X))
    overlay = {"file": str(tmp_path / "model.safetensors"), "num_classes": 7}
    given = {key: value for key, value in options.items() if key != "init"}
    third = timm.create_model(name, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay, **given).eval()
    assert torch.equal(third(X), model(X))


@torch.no_grad()
def test_a_saved_network_of_the_authors_routing_or_another_comes_back(tmp_path: Path) -> None:
    """What is said of their published weights does not hold for one's own."""
    condconv.register_timm_models()
    model = timm.create_model(f"condconv_{AUTHORS}", num_classes=2, routing="softmax", init="same_output").eval()
    timm.models.save_for_hf(model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(X), model(X))


@torch.no_grad()
def test_weights_of_ones_own_where_timm_has_none() -> None:
    source = with_statistics(create_model("mobilenet_v1_025", num_classes=2))
    overlay = {"state_dict": source.state_dict(), "num_classes": 2}
    model = create_model(
        "mobilenet_v1_cc_025_2e", num_classes=2, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    close(model(X), source(X))


@torch.no_grad()
def test_classes_and_channels_of_a_saved_network_are_its_own(tmp_path: Path) -> None:
    condconv.register_timm_models()
    model = create_model("mobilenet_v1_cc_025_2e", num_classes=4, in_chans=1).eval()
    timm.models.save_for_hf(model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(X[:, :1]), model(X[:, :1]))


def test_a_file_is_read_without_running_code_of_its(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('it ran')",)

    torch.save({"state_dict": Bomb()}, tmp_path / "x.pth")
    for place in ({"file": str(tmp_path / "x.pth")}, {"file": str(tmp_path / "x.pth"), "source": "local-dir"}):
        with pytest.raises(UsageError, match=r"must hold tensors and plain values only, got '.*x\.pth'"):
            create_model("mobilenet_v1_025", pretrained=True, pretrained_cfg=place)
