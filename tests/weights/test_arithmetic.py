"""Weights that fit a network and would be slightly wrong in it: padding, and the epsilon of batch norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.errors import UsageError
from condconv.nn import TFSameConv2d
from condconv.weights import load_state_dict
from condconv.weights.arithmetic import TENSORFLOW, Arithmetic, check_arithmetic, known_source

models = pytest.importorskip("torchvision").models


@pytest.mark.parametrize(
    "name",
    [*(f"efficientnet_b{size}" for size in range(8)), *(f"efficientnet_v2_{size}" for size in "sml"), "mobilenet_v2"],
)
def test_torchvisions_networks_are_told_by_their_names(name: str) -> None:
    """Their epsilon is read from the networks themselves; none pads as TensorFlow does."""
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
    (eps,) = {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    for prefix in ("", "module."):
        known = known_source(prefix + key for key in network.state_dict())
        assert known is not None
        assert known[1] == Arithmetic(tf_padding=False, eps=eps)
    check_arithmetic(network, Arithmetic(tf_padding=False, eps=eps), name)


def test_other_names_tell_nothing() -> None:
    assert known_source(["_conv_stem.weight", "_bn0.weight"]) == ("the package efficientnet_pytorch's", TENSORFLOW)
    for name in ("mobilenet_v3_small", "mnasnet0_5", "resnet18", "convnext_tiny"):
        with torch.device("meta"):
            assert known_source(models.get_model(name, weights=None).state_dict()) is None
    assert known_source(["conv_stem.weight", "features.0.0.weight"]) is None


def refusal(model: nn.Module, state: dict[str, Any]) -> str:
    stem = model.conv_stem.weight.clone()
    with pytest.raises(UsageError) as caught:
        load_state_dict(model, state, source="x")
    assert torch.equal(model.conv_stem.weight, stem)
    return str(caught.value)


def test_torchvisions_padding() -> None:
    """EfficientNet's strided convolutions pad otherwise there, and nothing in names or shapes tells."""
    state = models.efficientnet_b0(num_classes=10).state_dict()
    load_state_dict(condconv.create_model("efficientnet_cc_b0_2e", num_classes=10), state)
    message = refusal(condconv.create_model("tf_efficientnet_cc_b0_2e", num_classes=10, bn_eps=1e-5), state)
    assert message == (
        "`model` must pad strided convolutions evenly to take weights of x, which looks like torchvision's "
        "EfficientNet-B0 to B4, got Conv2dSame with padding=(0, 0) in conv_stem: create the network without 'tf_' "
        "before its name, bn_eps=1e-05"
    )
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert "torchvision's" in refusal(condconv.create_model("tf_efficientnet_cc_b0_2e", num_classes=10), wrapped)


def test_torchvisions_epsilon() -> None:
    """From B5 on it is 1e-3 there, and 1e-5 in timm's network of the same name; what the message says works."""
    source = models.efficientnet_b5(num_classes=10)
    message = refusal(condconv.create_model("efficientnet_b5", num_classes=10), source.state_dict())
    assert message == (
        "`model` must have batch norms with eps=0.001 to take weights of x, which looks like torchvision's "
        "EfficientNet-B5, B6 or B7, got 1e-05 in bn1: create the network without 'tf_' before its name, bn_eps=0.001"
    )
    model = condconv.create_model("efficientnet_b5", num_classes=10, bn_eps=1e-3)
    assert load_state_dict(model, source.state_dict()).matched == "by kind and order"


def test_names_of_the_network_itself_tell_nothing_of_another() -> None:
    """A network that is called as torchvision's, with padding of its own, takes its own weights."""

    def net() -> nn.Module:
        model = nn.Module()
        model.features = nn.Sequential(
            nn.Sequential(TFSameConv2d(3, 4, 3, 2)),
            nn.ModuleDict({"conv": nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3)))}),
        )
        return model

    source, model = net(), net()
    assert known_source(source.state_dict()) is not None
    assert load_state_dict(model, source.state_dict()).matched == "by name"
    assert torch.equal(model.features[0][0].weight, source.features[0][0].weight)


def test_the_names_of_efficientnet_pytorch() -> None:
    """Its layers run in the order of timm's, and stand under names of its own; it pads as TensorFlow does."""
    timm = pytest.importorskip("timm")
    source = timm.create_model("tf_efficientnet_b0", num_classes=10)
    port = {"_" + name.replace("blocks", "blocks_"): value for name, value in source.state_dict().items()}
    load_state_dict(condconv.create_model("tf_efficientnet_cc_b0_2e", num_classes=10), port)
    message = refusal(condconv.create_model("efficientnet_cc_b0_2e", num_classes=10), port)
    assert (
        "must pad strided convolutions as TensorFlow does to take weights of x, which looks like the package" in message
    )
    assert "create the network with 'tf_' before its name, bn_eps=0.001" in message


def test_layers_that_are_the_same_either_way() -> None:
    """Without a stride, or with one tap, TensorFlow's padding is the even one; pooling is not looked at."""
    neutral = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, 2), nn.MaxPool2d(3, 2), nn.BatchNorm2d(3))
    for padding in (True, False):
        check_arithmetic(neutral, Arithmetic(padding, 1e-5), "x")
    for layer in (
        TFSameConv2d(3, 3, 3, 2),
        condconv.CondConv2d(3, 3, 3, 2, padding="tf_same"),
        pytest.importorskip("timm").layers.create_conv2d(3, 3, 3, stride=2, padding="same"),
    ):
        check_arithmetic(nn.Sequential(layer), TENSORFLOW, "x")
        with pytest.raises(UsageError, match=r"pad strided convolutions evenly to take weights of x, got .* in 0: "):
            check_arithmetic(nn.Sequential(layer), Arithmetic(False, 1e-3), "x")
    with pytest.raises(UsageError, match=r"as TensorFlow does to take weights of x, got CondConv1d with padding"):
        check_arithmetic(nn.Sequential(condconv.CondConv1d(3, 3, 3, 2, padding=1)), TENSORFLOW, "x")
    with pytest.raises(UsageError, match="have batch norms with eps=0.001 to take weights of x, got 1e-05 in 0"):
        check_arithmetic(nn.Sequential(nn.SyncBatchNorm(3)), TENSORFLOW, "x")
