"""What a source that does not fit probably is, from its names and shapes."""

from __future__ import annotations

import re
from math import prod
from typing import Any

from torch.nn.modules.conv import _ConvNd

from condconv.errors import few
from condconv.nn import EXPERTS, ConditionalLayer
from condconv.nn.classes import is_conv, is_linear
from condconv.weights.misfit import Misfit
from condconv.weights.parts import (
    parts_in_the_network_alone,
    parts_in_the_source_alone,
    tensors_in_the_source_alone,
)
from condconv.weights.reparametrized import unknown_parametrizations

# Names that give a family away, and what it is.
_SIGNS = (
    (r"(.*\.)?(cls_token|pos_embed|position_embeddings)(\..+)?", "a vision transformer"),
    (r"layers\.8\.0\.layers\.0\.weight", "torchvision's MnasNet, which is B1: without squeeze-and-excitation"),
    (r"(.*\.)?layer1\.0\.conv1\.weight", "a ResNet"),
    (r"(.*\.)?blocks\.0\.0\.conv_dw\.weight", "a MobileNet or EfficientNet of timm's"),
    (r"(.*\.)?features\.0\.0\.weight", "a MobileNet or EfficientNet of torchvision's"),
    (r"(.*\.)?stages\.0\.blocks?\.0\..+", "a ConvNeXt or RegNet of timm's"),
    (r"(.*\.)?_conv_stem\.weight", "an EfficientNet of the package efficientnet_pytorch"),
)


_ANOTHER = "it is another network's: create the network that it is of"


def diagnose(misfit: Misfit) -> str:
    """Return a clause for the message: what a source probably is, and what to do.

    Args:
        misfit: The source and the network.
    """
    checks = (
        _empty,
        _parametrized,
        _other_experts,
        _conditional_for_static,
        _other_classifier,
        _without_classifier,
        parts_in_the_network_alone,
        parts_in_the_source_alone,
        tensors_in_the_source_alone,
        _other_input,
        _other_width,
        _other_family,
    )
    found = (check(misfit) for check in checks)
    if clause := next((clause for clause in found if clause), None):
        return clause
    nearly = misfit.matched.tensors and not misfit.is_of_other_layers
    return "it is this network's in another form: create the network as it was saved" if nearly else _ANOTHER


def _empty(misfit: Misfit) -> str | None:
    if any(misfit.tensor(name).numel() == 0 for name in misfit.fit.misfits):
        return "it is a part of a run on several devices, whose tensors are empty: gather them before saving"
    return None


def _parametrized(misfit: Misfit) -> str | None:
    unknown = unknown_parametrizations(misfit.matched.unknown, misfit.fit.missing)
    if not unknown:
        return None
    weight, parts = next(iter(unknown.items()))
    owner, _, leaf = weight.rpartition(".")
    return (
        f"its {weight!r} is computed by a parametrization that is not known here, from {few(parts)}: call "
        f"torch.nn.utils.parametrize.remove_parametrizations(module, {leaf!r}) for {owner!r} and others of the network "
        "it is of, then save its state_dict() again"
    )


def _other_experts(misfit: Misfit) -> str | None:
    for name in misfit.fit.misfits:
        layer_name, _, leaf = name.rpartition(".")
        layer, tensor = misfit.module(layer_name), misfit.tensor(name)
        if not isinstance(layer, ConditionalLayer) or leaf != "weight" or tensor.dim() == 0:
            continue
        if tensor.numel() != tensor.shape[0] * prod(layer.experts.spec.shape):
            continue
        theirs = "deltas" if any(each.endswith(".centre") for each in misfit.state) else "dense"
        if not isinstance(layer.experts, EXPERTS[theirs]):
            return f"its experts are {theirs} and the network's are not: create the network with experts={theirs!r}"
        count = tensor.shape[0] - (theirs == "deltas")
        if count != layer.num_experts:
            return (
                f"it has {count} experts per layer and the network {layer.num_experts}: create the network with {count}"
            )
    return None


def _conditional_for_static(misfit: Misfit) -> str | None:
    for name in misfit.fit.misfits:
        layer_name = name.rpartition(".")[0]
        layer, tensor = misfit.module(layer_name), misfit.tensor(name)
        if (
            isinstance(layer, _ConvNd)
            and tensor.dim() in (2, layer.weight.dim() + 1)
            and tensor.numel() == tensor.shape[0] * layer.weight.numel()
        ):
            return (
                f"it is a conditional network's, with {tensor.shape[0]} experts, and {layer_name!r} has none here: "
                "create the conditional network, with the layers that have experts there"
            )
    return None


def _classifier(misfit: Misfit) -> str | None:
    """Return the name of the network's last linear layer that is not part of a routing function."""
    linears = [name for name, module in misfit.layers.modules.items() if is_linear(module)]
    return next((name for name in reversed(linears) if ".routing_fn." not in f".{name}"), None)


def _other_classifier(misfit: Misfit) -> str | None:
    last, fit = _classifier(misfit), misfit.fit
    if last is None or not fit.misfits or misfit.matched.unknown:
        return None
    if not all(name.startswith(f"{last}.") for name in (*fit.misfits, *fit.missing)):
        return None
    tensor = misfit.matched.tensors.get(f"{last}.weight")
    own = misfit.layers.tensors[f"{last}.weight"]
    if tensor is None or tensor.dim() < 2 or tensor.shape[-1] != own.shape[-1]:
        return None
    return (
        f"its classifier is for {tensor.shape[-2]} classes: create the network with as many, or pass "
        f"skip={last + '.*'!r} to keep the network's own classifier"
    )


def _without_classifier(misfit: Misfit) -> str | None:
    last, fit = _classifier(misfit), misfit.fit
    if last is None or not fit.missing or fit.misfits or misfit.matched.unknown or misfit.matched.clashes:
        return None
    if not all(name.startswith(f"{last}.") for name in fit.missing):
        return None
    return (
        f"its network has no classifier: create this one with num_classes=0, or pass skip={last + '.*'!r} to keep "
        "the network's own classifier"
    )


def _other_input(misfit: Misfit) -> str | None:
    stem, ours = next(
        (
            (f"{name}.weight", _kernel_shape(module))
            for name, module in misfit.layers.modules.items()
            if is_conv(module)
        ),
        ("", ()),
    )
    # Where the kernel does not fit, nor does one bias for all experts.
    if not ours or {*misfit.fit.misfits} - {f"{stem.removesuffix('weight')}bias"} != {stem}:
        return None
    theirs = misfit.tensor(stem)
    kernel = theirs.shape[1:] if theirs.dim() > len(ours) else theirs.shape
    if len(kernel) != len(ours) or (kernel[0], *kernel[2:]) != (ours[0], *ours[2:]):
        return None
    return (
        f"its images have {kernel[1]} channels: create the network with as many in_chans, or pass "
        f"skip={stem.removesuffix('weight') + '*'!r} to keep the network's own first layer"
    )


def _other_width(misfit: Misfit) -> str | None:
    own, fit = misfit.layers.tensors, misfit.fit
    norms = [name for name in fit.misfits if name.endswith("running_mean") and misfit.tensor(name).dim() == 1]
    # Where kernels do not fit, no routing and no centre can start from them: they are missing for that reason.
    lacking = [name for name in fit.missing if ".routing_fn." not in name and not name.endswith(".centre")]
    if lacking or misfit.matched.unknown or len(norms) < 2:
        return None
    ratios = sorted(misfit.tensor(name).numel() / max(1, own[name].numel()) for name in norms)
    return (
        f"its channels are {ratios[len(ratios) // 2]:.3g} times the network's: it is the same network, of another width"
    )


def _other_family(misfit: Misfit) -> str | None:
    own = misfit.layers.first
    for pattern, family in _SIGNS:
        if any(re.fullmatch(pattern, name) for name in misfit.state):
            same = any(re.fullmatch(pattern, name) for name in own)
            if same and not misfit.is_of_other_layers:
                return None
            depth = ", of another depth or form" if same else ", and the network is not"
            return f"it looks like {family}{depth}"
    return None


def _kernel_shape(layer: Any) -> tuple[int, ...]:
    return layer.experts.spec.shape if isinstance(layer, ConditionalLayer) else tuple(layer.weight.shape)
