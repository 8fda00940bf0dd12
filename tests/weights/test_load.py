"""Weights that exist give the source's logits: timm's conditional networks, static ones, ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.weights import load_state_dict, to_timm_state_dict

from .networks import assert_same_logits, randomise, routing_of, small

timm = pytest.importorskip("timm")

CONDITIONAL = {
    prefix + theirs: prefix + ours
    for prefix in ("", "tf_")
    for theirs, ours in {
        "efficientnet_cc_b0_4e": "efficientnet_cc_b0_4e",
        "efficientnet_cc_b0_8e": "efficientnet_cc_b0_8e",
        "efficientnet_cc_b1_8e": "efficientnet_cc_b0_depth_8e",
    }.items()
}


def test_every_conditional_network_of_timms_is_here() -> None:
    names = timm.list_models("*efficientnet_cc*", exclude_filters="condconv_*")  # ours may be registered
    assert set(CONDITIONAL) == set(names)


@pytest.mark.parametrize(
    "theirs",
    [
        name
        if name in ("efficientnet_cc_b0_4e", "tf_efficientnet_cc_b0_8e")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in CONDITIONAL
    ],
)
def test_parity_with_timm(theirs: str, tmp_path: Path) -> None:
    source = randomise(timm.create_model(theirs))
    model = condconv.create_model(CONDITIONAL[theirs])
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    report = condconv.load_pretrained(model, tmp_path / "weights.pth")
    assert len(report.copied) == len(source.state_dict())
    assert report.upcycled == report.skipped == report.notes == ()
    assert_same_logits(model, source, (1, 128), (3, 97))  # even and odd, where TensorFlow pads differently
    # The comparison sees the experts only if routing differs between images and experts matter.
    weights = routing_of(model, torch.randn(4, 3, 128, 128, dtype=torch.float64))
    assert max(each.std(0).max().item() for each in weights) > 0.05
    with torch.no_grad():
        model.blocks[6][0].conv_pwl.weight.copy_(model.blocks[6][0].conv_pwl.weight.roll(1, 0))
    with pytest.raises(AssertionError, match="not close"):
        assert_same_logits(model, source, (2, 96))


@pytest.mark.parametrize("theirs", ["efficientnet_cc_b0_4e", "tf_efficientnet_cc_b0_4e"])
def test_back_to_timm(theirs: str) -> None:
    model = randomise(condconv.create_model(CONDITIONAL[theirs]))
    back = timm.create_model(theirs)
    back.load_state_dict(to_timm_state_dict(model))
    assert_same_logits(back, model, (2, 97))


def test_back_to_timm_is_refused_for_networks_that_it_has_not() -> None:
    cases = {
        ("tf_efficientnet_cc_b0_4e", ("conditional_classifier", True)): "'classifier' is not as in timm .it routes by",
        ("efficientnet_cc_b0_4e", ("routing", "softmax")): "its block routes by SoftmaxRouting, not by a sigmoid",
        ("efficientnet_b0", ("drop_rate", 0.1)): "must have conditional layers, got a static network",
    }
    for (name, option), message in cases.items():
        with pytest.raises(ValueError, match=message):
            to_timm_state_dict(condconv.create_model(name, num_classes=10, **dict([option])))
    folded = condconv.create_model("efficientnet_cc_b0_2e", num_classes=10)
    condconv.fold_batch_norms_(folded, torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="it has a bias or a folded batch norm"):
        to_timm_state_dict(folded)


# Conditional network: library and name of the static one; then those that take longer.
STATIC = {
    "mobilenet_v1_cc_025_3e": ("condconv", "mobilenet_v1_025"),
    "mobilenet_v2_cc_100_2e": ("torchvision", "mobilenet_v2"),
    "mnasnet_a1_cc_050_4e": ("timm", "semnasnet_050"),
    "resnet_cc_18_2e": ("torchvision", "resnet18"),
    "efficientnet_cc_b0_2e": ("torchvision", "efficientnet_b0"),
    "tf_efficientnet_cc_b0_2e": ("timm", "tf_efficientnet_b0"),
}
SLOW_STATIC = {
    "mobilenet_v1_cc_100_2e": ("timm", "mobilenetv1_100"),
    "mobilenet_v2_cc_050_8e": ("timm", "mobilenetv2_050"),
    "resnet_cc_50_2e": ("torchvision", "resnet50"),
    "resnet_cc_34_2e": ("timm", "resnet34"),
    "efficientnet_cc_b0_3e": ("timm", "efficientnet_b0"),
    "tf_efficientnet_cc_b0_depth_2e": ("timm", "tf_efficientnet_b1"),
}


def static_network(library: str, name: str) -> nn.Module:
    if library == "torchvision":
        return randomise(pytest.importorskip("torchvision").models.get_model(name, weights=None))
    return randomise(timm.create_model(name) if library == "timm" else condconv.create_model(name))


@pytest.mark.parametrize("name", [*STATIC, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_STATIC)])
def test_a_static_network_goes_on_as_it_was(name: str) -> None:
    """Even though the conditional network starts with random experts and routing."""
    source = static_network(*{**STATIC, **SLOW_STATIC}[name]).double()
    model = condconv.create_model(name).double()
    objects = {key: id(parameter) for key, parameter in model.named_parameters()}
    report = load_state_dict(model, source.state_dict())
    assert_same_logits(model, source, (2, 65))
    layers = [key for key, module in model.named_modules() if isinstance(module, condconv.nn.ConditionalLayer)]
    assert sorted(report.upcycled) == sorted(layers)
    assert {key: id(parameter) for key, parameter in model.named_parameters()} == objects
    for key in layers:  # experts differ, so that they can part
        weight = model.get_submodule(key).weight.detach().flatten(1)
        assert nn.functional.pdist(weight).min() > 0.1 * weight.std()


def test_static_into_static_and_conditional_into_itself() -> None:
    for experts in (0, 2):
        source, model = randomise(small(experts)).double(), small(experts).double()
        report = load_state_dict(model, source.state_dict())
        assert report.upcycled == ()
        assert_same_logits(model, source, (2, 64))


@pytest.mark.parametrize("routing", ["softmax", "hierarchical", "top_k", "hidden"])
def test_every_routing_starts_from_a_static_network(routing: str) -> None:
    source, model = randomise(small()).double(), small(4, routing=routing, classifier=False).double()
    load_state_dict(model, source.state_dict())
    assert_same_logits(model, source, (2, 64))


class PortedConv(nn.Module):
    """The form of the common ports: each layer with a routing function of its own."""

    def __init__(self, experts: int, inputs: int, outputs: int, size: int, flat: bool) -> None:
        super().__init__()
        shape = (experts, outputs * inputs * size**2) if flat else (experts, outputs, inputs, size, size)
        self.experts = nn.Parameter(torch.randn(shape) / (inputs * size**2) ** 0.5)
        self.shape = (outputs, inputs, size, size)
        self._routing_fn = nn.ModuleDict({"fc": nn.Linear(inputs, experts)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.sigmoid(self._routing_fn["fc"](x.mean((2, 3))))
        kernels = (weights @ self.experts.flatten(1)).view(len(x), *self.shape)
        mixed = [nn.functional.conv2d(xi[None], kernel, padding=1) for xi, kernel in zip(x, kernels, strict=True)]
        return torch.cat(mixed)


@pytest.mark.parametrize("flat", [True, False])
def test_experts_of_the_common_ports(flat: bool) -> None:
    source = nn.Sequential(PortedConv(4, 3, 8, 3, flat), nn.BatchNorm2d(8), nn.ReLU(), PortedConv(4, 8, 5, 3, flat))
    with torch.no_grad():
        for linear in (source[0]._routing_fn["fc"], source[3]._routing_fn["fc"]):
            linear.weight.mul_(10)
    conv = condconv.CondConv2d
    model = nn.Sequential(
        conv(3, 8, 3, padding=1, bias=False, num_experts=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 5, 3, padding=1, bias=False, num_experts=4),
    )
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    report = load_state_dict(model, state)
    assert report.matched == "by name, without 'module.'"
    assert_same_logits(model, source, (3, 9))


@pytest.mark.parametrize(("scale", "notes"), [(0.1, ()), (0.5, ("the scale of its differences was taken too, 0.1",))])
def test_the_report_says_that_a_files_scale_was_taken_in_place_of_the_networks(scale: float, notes: Any) -> None:
    source, taker = (small(2, experts=f"deltas(scale={each})") for each in (0.1, scale))
    report = load_state_dict(taker, {name: each.bfloat16() for name, each in source.state_dict().items()})
    assert [each.startswith(start) for each, start in zip(report.notes, notes, strict=True)] == [True] * len(notes)


def test_skip_keeps_a_classifier_for_other_classes() -> None:
    source, model = randomise(small(num_classes=100)), small(2)
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("classifier.")}
    report = load_state_dict(model, source.state_dict(), skip="classifier.*")
    assert set(report.skipped) == set(before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for net in (model.eval(), source):
            net.classifier = nn.Identity()
        torch.testing.assert_close(model(x), source(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match="must match names of the network or the file, got 'fc.\\*' for none: near names"
    ):
        load_state_dict(small(2), source.state_dict(), skip=["classifier.*", "fc.*"])


def test_a_function_of_name_and_module_chooses_what_is_skipped() -> None:
    model, state = small(2), {**small().state_dict(), "aux.weight": torch.zeros(3)}
    asked: dict[str, Any] = {}

    def skip(name: str, module: Any) -> bool:
        asked[name] = module
        return name == "aux.weight" or isinstance(module, nn.BatchNorm2d)

    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    report = load_state_dict(model, state, skip=skip)
    assert {name.rpartition(".")[0] for name in report.skipped} == {*norms}
    assert asked["stem.weight"] is model.stem
    assert asked["aux.weight"] is None


def test_weights_are_converted_to_the_networks_dtype_and_layout() -> None:
    source = randomise(small())
    model = small(2).double().to(memory_format=torch.channels_last)
    layer = model.blocks[2].depthwise
    layout = layer.weight.stride()
    load_state_dict(model, source.half().state_dict())
    assert layer.weight.dtype == torch.float64
    assert layer.weight.stride() == layout


def test_report_reads_well() -> None:
    report = load_state_dict(small(2), small().state_dict(), skip=["classifier.*"])
    # 3 convolutions without experts, and 7 norms of five tensors each.
    assert str(report).splitlines() == [
        "state dict: 38 tensors copied, matched by name",
        "experts made from static kernels in 4 layers, blocks.1.depthwise, blocks.1.pointwise, blocks.2.depthwise, "
        "blocks.2.pointwise",
        "left as they were: classifier.experts.weight, classifier.experts.bias, classifier.routing_fn.fc.weight, "
        "classifier.routing_fn.fc.bias",
    ]


def test_what_goes_back_to_timm_is_the_networks_memory() -> None:
    model = condconv.create_model("efficientnet_cc_b0_2e", num_classes=10)
    state = to_timm_state_dict(model)
    experts = model.get_submodule("blocks.4.0.conv_pw").weight
    assert state["blocks.4.0.conv_pw.weight"].data_ptr() == experts.data_ptr()
    assert state["conv_stem.weight"].data_ptr() == model.conv_stem.weight.data_ptr()
    assert not state["blocks.4.0.conv_pw.weight"].requires_grad
    copied = to_timm_state_dict(model.to(memory_format=torch.channels_last))["blocks.4.0.conv_dw.weight"]
    layer = model.get_submodule("blocks.4.0.conv_dw")
    assert torch.equal(copied, layer.weight.flatten(1))
