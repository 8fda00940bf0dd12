"""What is said of weights that do not fit, and that nothing is changed by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.errors import UsageError
from condconv.weights import load_state_dict

from .networks import assert_unchanged, copy_of, small


def refusal(model: nn.Module, state: Mapping[str, Any], **options: Any) -> str:
    before = copy_of(model)
    with pytest.raises(UsageError) as caught:
        load_state_dict(model, state, **{"source": "x.pth", **options})
    assert_unchanged(model, before)
    message = str(caught.value)
    assert message.startswith("`path` must hold weights of this network, got x.pth: ")
    assert len(message) < 900
    return message


def of_timm(name: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = pytest.importorskip("timm").create_model(name, num_classes=10).state_dict()
    return state


def without_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.new_empty(0) if value.dim() else value for name, value in state.items()}


# What is loaded into a small network with 2 experts and 10 classes, and what is said of it.
MISFITS: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "experts": (
        lambda: small(4).state_dict(),
        "it has 4 experts per layer and the network 2: create the network with 4",
    ),
    "flattened experts": (
        lambda: {n: v.flatten(1) if "wise.weight" in n else v for n, v in small(4).state_dict().items()},
        "it has 4 experts per layer and the network 2: create the network with 4",
    ),
    "width": (lambda: small(width=16).state_dict(), "its channels are 2 times the network's: it is the same network"),
    "channels": (
        lambda: small(in_chans=1).state_dict(),
        "its images have 1 channels: create the network with as many in_chans, or pass skip='stem.*' to keep",
    ),
    "classes": (
        lambda: small(num_classes=7).state_dict(),
        "its classifier is for 7 classes: create the network with as many, or pass skip='classifier.*' to keep",
    ),
    "no classifier": (
        lambda: small(num_classes=0).state_dict(),
        "its network has no classifier: create this one with num_classes=0, or pass skip='classifier.*' to keep",
    ),
    "resnet": (lambda: of_timm("resnet18"), "it looks like a ResNet, and the network is not"),
    "vit": (lambda: {"cls_token": torch.zeros(3), "pos_embed": torch.zeros(4)}, "it looks like a vision transformer"),
    "nothing": (lambda: {"a.weight": torch.zeros(3)}, "it is another network's"),
    "empty": (lambda: without_values(small().state_dict()), "whose tensors are empty: gather them before saving"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_are_named_and_nothing_is_changed(case: str) -> None:
    make, message = MISFITS[case]
    assert message in refusal(small(2), make())


@pytest.mark.parametrize(
    ("ours", "theirs", "number", "message"),
    [
        ("deltas", "deltas", 4, "it has 4 experts per layer and the network 2: create the network with 4"),
        ("deltas", "dense", 2, "its experts are dense and the network's are not: create the network with experts="),
        ("dense", "deltas", 2, "its experts are deltas and the network's are not: create the network with experts="),
        ("shared", "dense", 2, "its experts are dense and the network's are not: create the network with experts="),
    ],
)
def test_experts_of_another_store_or_number(ours: str, theirs: str, number: int, message: str) -> None:
    assert message in refusal(small(2, experts=ours), small(number, experts=theirs).state_dict())


def test_a_resnet_of_another_depth() -> None:
    timm = pytest.importorskip("timm")
    message = refusal(timm.create_model("resnet18", num_classes=10), of_timm("resnet34"))
    assert "it looks like a ResNet, of another depth or form" in message


def test_what_is_advised_works() -> None:
    """Another classifier, none, or images of other channels: each piece of advice loads."""
    for source, pattern in (
        (small(num_classes=7), "classifier.*"),
        (small(num_classes=0), "classifier.*"),
        (small(in_chans=1), "stem.*"),
    ):
        model = small(2)
        before = copy_of(model)
        report = load_state_dict(model, source.state_dict(), skip=pattern)
        kept = [name for name in before if name.startswith(pattern[:-1])]
        assert list(report.skipped) == kept
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in kept)
        assert torch.equal(model.norm.weight, source.norm.weight)


def test_a_network_without_a_classifier() -> None:
    model, source = small(2, num_classes=0), small()
    wrapped = {f"module.{name}": value for name, value in source.state_dict().items()}
    for state, pattern in ((source.state_dict(), "classifier.*"), (wrapped, "module.classifier.*")):
        message = refusal(model, state)
        assert "the network has no " in message
        assert (
            "has no classifier (num_classes=0) or gives features only: "
            f"pass skip='{pattern}' to leave the rest out" in message
        )
        load_state_dict(model, state, skip=[pattern])
        assert torch.equal(model.norm.weight, source.norm.weight)


def test_a_part_of_a_layer_is_no_part_to_leave_out() -> None:
    """Half a routing function would be loaded where the other half was left out."""
    state = small(2, routing="hidden", classifier=False).state_dict()
    message = refusal(small(2, classifier=False), state)
    assert "the network has no blocks.1.routing_fn.hidden.weight" in message
    assert "skip" not in message


def test_torchvisions_classifier_is_told_too() -> None:
    """Its names are matched by order, where one of both may lack the linear layers."""
    models = pytest.importorskip("torchvision").models
    state = models.mobilenet_v2(num_classes=10, width_mult=0.35).state_dict()
    model = condconv.create_model("mobilenet_v2_cc_035_2e", num_classes=0)
    assert "pass skip='classifier.*' to leave the rest out" in refusal(model, state)
    load_state_dict(model, state, skip="classifier.*")
    assert torch.equal(model.conv_stem.weight, state["features.0.0.weight"])
    model = condconv.create_model("mobilenet_v2_cc_035_2e", num_classes=10, in_chans=1)
    assert "its images have 3 channels" in refusal(model, state)
    headless = {name: value for name, value in state.items() if not name.startswith("classifier")}
    model = condconv.create_model("mobilenet_v2_cc_035_2e", num_classes=10)
    assert "its network has no classifier: create this one with num_classes=0" in refusal(model, headless)


@pytest.mark.parametrize("conditional_source", [False, True])
def test_other_channels_of_a_conditional_stem(conditional_source: bool) -> None:
    def stem(in_chans: int, num_experts: int = 2) -> nn.Module:
        net: nn.Module = nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        if num_experts:
            condconv.convert_(net, num_experts, routing="constant", example_input=torch.zeros(1, in_chans, 8, 8))
        return net

    message = refusal(stem(3), stem(1, 2 if conditional_source else 0).state_dict())
    assert "its images have 1 channels: create the network with as many in_chans, or pass skip='0.*'" in message
    message = refusal(stem(1), {**stem(1).state_dict(), "0.weight": torch.zeros(2, 8, 1, 5, 5)})
    assert "its images have" not in message


def test_names_and_shapes_are_in_the_message() -> None:
    state = small().state_dict()
    del state["blocks.2.norm1.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["stem.weight"] = torch.zeros(8, 4, 3, 3)
    message = refusal(small(2), state)
    assert "it lacks blocks.2.norm1.weight; the network has no extra.weight; " in message
    assert "of another shape: stem.weight [8, 4, 3, 3] (the network's: [8, 3, 3, 3])" in message


def test_a_conditional_checkpoint_into_layers_without_experts() -> None:
    for flat in (False, True):
        state = small(2).state_dict()
        state = {name: value.flatten(1) if flat and value.dim() == 5 else value for name, value in state.items()}
        message = refusal(small(), state)
        assert "a conditional network's, with 2 experts, and 'blocks.1.depthwise' has none here" in message


def test_a_layer_without_sizes_divides_nothing() -> None:
    """A network of zero channels is no reason to fail while the reason is looked for."""
    model = nn.Sequential(nn.BatchNorm2d(0), nn.BatchNorm2d(0))
    state = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).state_dict()
    assert "of another shape: 0.weight [2] (the network's: [0])" in refusal(model, state)
