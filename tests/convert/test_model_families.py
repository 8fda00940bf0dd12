"""Conversion keeps what the model families of torchvision and timm compute.

The tables name a small member of each family, what of it is left static, and why; a test fails when that changes.
All is float64, and what counts as rounding is measured on the static model; a relative error of 1e-9 in the experts
of the quick families is seen.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import condconv
from condconv.nn import ConditionalLayer, RoutingFunction

NUM_EXPERTS = 3  # odd: sigmoid at zero then sums to 1.5, and a missing rescaling shows
# The conversion must move the model less than a relative change of its static kernels by this, 4500 roundings, does.
NUDGE = 1e-12

FED_A_LIST = "its first input must be a tensor [B, C, ...], got something else"
STD_CONV = "it is a timm.layers.std_conv.{} with a forward of its own"


@dataclass(frozen=True)
class Family:
    """A small member of a family, and what `convert_` leaves of it."""

    member: str
    size: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)  # reason to number of layers
    error: Mapping[str, str] = field(default_factory=dict)  # scope to part of the message, the model being refused
    unrouted: str = ""  # why some blocks cannot route their layers, which then route by their own inputs
    quick: bool = False


# By the module of torchvision.models that defines the family. Where the size is not 64 the family fixes it.
TORCHVISION = {
    "alexnet": Family("alexnet"),
    "convnext": Family("convnext_tiny"),
    "densenet": Family("densenet121", unrouted=FED_A_LIST),
    "efficientnet": Family("efficientnet_b0"),
    "googlenet": Family("googlenet", options={"init_weights": False}),
    "inception": Family(
        "inception_v3",
        size=299,
        options={"init_weights": False},
    ),
    "maxvit": Family("maxvit_t"),
    "mnasnet": Family("mnasnet0_5"),
    "mobilenetv2": Family("mobilenet_v2"),
    "mobilenetv3": Family("mobilenet_v3_small"),
    "regnet": Family("regnet_x_400mf"),
    "resnet": Family("resnet18"),
    "shufflenetv2": Family("shufflenet_v2_x0_5", quick=True),
    "squeezenet": Family("squeezenet1_1", quick=True),
    "swin_transformer": Family("swin_t"),
    "vgg": Family("vgg11_bn", options={"init_weights": False}),
    "vision_transformer": Family("vit_b_32", options={"image_size": 64}),
}
TIMM = [
    Family("convnext_atto"),
    Family("convnextv2_atto"),
    Family("cs3darknet_focus_s"),
    Family("cspresnet50"),
    Family("darknet17"),
    Family("densenetblur121d", unrouted=FED_A_LIST),
    Family("dla46_c", quick=True),
    Family("dpn48b"),
    Family("ecaresnet26t"),
    Family("edgenext_xx_small"),
    Family("efficientformer_l1", size=224),
    Family("efficientnet_cc_b0_4e"),  # timm's own conditional layers stay as they are
    Family("efficientvit_m0", size=224),
    Family("ese_vovnet19b_slim_dw"),
    Family("fastvit_t8"),
    Family("fbnetc_100"),
    Family("ghostnet_050"),
    Family("hgnetv2_b0"),
    Family("hrnet_w18_small", unrouted=FED_A_LIST),
    Family("inception_next_atto"),
    Family("inception_v4", size=96),
    Family("lcnet_035", quick=True),
    Family("levit_conv_128s", size=224),
    Family("mixnet_s"),
    Family("mnasnet_small"),
    Family("mobilenetv2_050"),
    Family("mobilenetv3_small_050"),
    Family("mobilenetv4_conv_small_035"),
    Family("mobileone_s0"),
    Family("mobilevit_xxs"),
    Family("mobilevitv2_050"),
    Family("poolformer_s12"),
    Family("regnetx_002"),
    Family("repvgg_a0"),
    Family("repvit_m0_9"),
    Family("res2net50_48w_2s"),
    Family("resnest14d"),
    Family("resnet10t"),
    Family("resnetv2_18"),
    Family("resnetv2_50x1_bit", error=dict.fromkeys(("layer", "block"), STD_CONV.format("StdConv2d"))),
    Family("resnext26ts"),
    Family("rexnet_100"),
    Family("selecsls42", unrouted=FED_A_LIST),
    Family("skresnet18"),
    Family("swin_tiny_patch4_window7_224", size=224),
    Family("test_byobnet", quick=True),
    Family("test_coatnet", size=160, quick=True),
    Family("test_maxvit", size=160),
    Family("test_nfnet", quick=True, error=dict.fromkeys(("layer", "block"), STD_CONV.format("ScaledStdConv2d"))),
    Family("tf_efficientnet_b0"),
    Family("tf_efficientnetv2_b0"),
    Family("tf_mixnet_s"),
    Family("vit_tiny_patch16_224", size=224),
    Family("vit_tiny_r_s16_p8_224", size=224, refused={STD_CONV.format("StdConv2dSame"): 1}),
    Family("xception41"),
]


def build(library: str, family: Family) -> nn.Module:
    """Return the member with random weights; those that start constant, gates of zero too, are drawn as well."""
    options = {"num_classes": 10, **family.options}
    if family.member == "maxvit_t":  # with smaller windows than the builder has, to take smaller images
        stages = {"block_channels": [64, 128, 256, 512], "block_layers": [2, 2, 5, 2], "head_dim": 32}
        window = {"input_size": (64, 64), "partition_size": 2, "stochastic_depth_prob": 0.2}
        model = pytest.importorskip("torchvision").models.MaxVit(stem_channels=64, **stages, **window, **options)
    elif library == "torchvision":
        model = pytest.importorskip("torchvision").models.get_model(family.member, weights=None, **options)
    else:
        model = pytest.importorskip("timm").create_model(family.member, pretrained=False, **options)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.uniform_(0.25, 1.0).mul_(torch.randint(0, 2, parameter.shape) * 2 - 1)
        _set_statistics(model, torch.randn(4, 3, family.size, family.size, dtype=torch.float64))
    return model


def _set_statistics(model: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of some images, so that every layer matters in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=norm.running_var.mean() / 10)


def observe(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the outputs in both modes and the buffers after training mode; the model's own are not touched."""
    seen = {}
    for mode in ("eval", "train"):
        torch.manual_seed(0)  # dropout and drop path draw alike
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        outputs = _tensors(torch.func.functional_call(model.train(mode == "train"), buffers, (x,)))
        seen.update({f"{mode} output {index}": tensor for index, tensor in enumerate(outputs)})
        seen.update(buffers)
    return seen


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif values is not None:  # an auxiliary head, in evaluation mode
        for value in values:
            yield from _tensors(value)


@torch.no_grad()
def tolerances(model: nn.Module, x: Tensor, before: dict[str, Tensor]) -> dict[str, float]:
    """Return how far each value moves when all kernels move by `NUDGE`, or 64 roundings of it if that is more."""
    kernels = [module.weight for module in model.modules() if isinstance(module, _ConvNd)]
    originals = [kernel.clone() for kernel in kernels]
    for kernel in kernels:
        kernel.mul_(1 + NUDGE * torch.randn_like(kernel))
    nudged = observe(model, x)
    for kernel, original in zip(kernels, originals, strict=True):
        kernel.copy_(original)
    rounding = 64 * torch.finfo(torch.float64).eps
    return {k: max(_distance(nudged[k], v), rounding * v.abs().max().item()) for k, v in before.items()}


def _distance(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def convs_of_several_pixels(model: nn.Module, x: Tensor) -> set[str]:
    """Return the names of the convolutions that run with several output positions: what the default selects."""
    found = set()
    handles = [
        module.register_forward_hook(lambda _, __, y, name=name: found.add(name) if y[0, 0].numel() > 1 else None)
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd)
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return found


def _cases() -> Iterator[Any]:
    tables = {"torchvision": TORCHVISION.values(), "timm": TIMM}
    for library, families in tables.items():
        for family in families:
            marks = () if family.quick else (pytest.mark.slow,)
            yield pytest.param(library, family, id=f"{library}-{family.member}", marks=marks)


@pytest.mark.parametrize("scope", ["layer", "block"])
@pytest.mark.parametrize(("library", "family"), list(_cases()))
def test_conversion_keeps_what_the_model_computes(library, family, scope):
    model = build(library, family)
    x = torch.randn(2, 3, family.size, family.size, dtype=torch.float64)
    with torch.no_grad():
        before = observe(model, x)
    if scope in family.error:
        check_refused(model, x, before, scope, family.error[scope])
        return
    allowed = tolerances(model, x, before)
    convs = convs_of_several_pixels(model, x)

    report = condconv.convert_(model, NUM_EXPERTS, scope=scope, example_input=x)

    assert Counter(report.refused.values()) == family.refused
    assert {layer.name for layer in report.layers} == convs - set(report.refused)
    unrouted = family.unrouted if scope == "block" else ""
    assert [note for note in report.notes if not unrouted or unrouted not in note] == []
    assert bool(report.notes) == bool(unrouted)
    after = observe(model, x)
    moved = {key: _distance(after[key], value) for key, value in before.items()}
    assert {key: moved[key] for key in moved if not moved[key] <= allowed[key]} == {}
    # The comparison itself must be sharp: a chaotic network would allow anything.
    assert max(allowed[key] / before[key].abs().max().item() for key in before if " output " in key) < 1e-5
    check_trainable(model, [after[key] for key in after if " output " in key])
    check_state_dict(model, x)


def check_refused(model: nn.Module, x: Tensor, before: dict[str, Tensor], scope: str, message: str) -> None:
    names = list(model.state_dict())
    with pytest.raises((RuntimeError, ValueError)) as caught:
        condconv.convert_(model, NUM_EXPERTS, scope=scope, example_input=x)
    assert message in str(caught.value)
    assert list(model.state_dict()) == names
    with torch.no_grad():
        after = observe(model, x)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def check_trainable(model: nn.Module, outputs: list[Tensor]) -> None:
    """Experts differ, and every expert stack and routing function gets a gradient, finite and not zero."""
    layers = [module for module in model.modules() if isinstance(module, ConditionalLayer)]
    assert all(nn.functional.pdist(layer.weight.detach().flatten(1)).min() > 0 for layer in layers)
    routers = [module for module in model.modules() if isinstance(module, RoutingFunction)]
    leaves = [layer.weight for layer in layers] + [p for router in routers for p in router.parameters()]
    loss = torch.stack([(torch.randn_like(y) * y).sum() for y in outputs]).sum()
    for gradient in torch.autograd.grad(loss, leaves):
        assert gradient.isfinite().all()
        assert gradient.any()


@torch.no_grad()
def check_state_dict(model: nn.Module, x: Tensor) -> None:
    twin = copy.deepcopy(model)
    for value in twin.state_dict().values():
        value.zero_()
    twin.load_state_dict(model.state_dict())
    for ours, theirs in zip(_tensors(model.eval()(x)), _tensors(twin.eval()(x)), strict=True):
        assert torch.equal(ours, theirs)


def test_every_torchvision_family_is_in_the_table():
    models = pytest.importorskip("torchvision.models")
    families: dict[str, set[str]] = {}
    for name in models.list_models(module=models):
        families.setdefault(models.get_model_builder(name).__module__.rpartition(".")[2], set()).add(name)
    assert set(TORCHVISION) == set(families)
    assert all(family.member in families[module] for module, family in TORCHVISION.items())
