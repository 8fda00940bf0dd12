"""Map variables of the authors' TensorFlow code to the parameters of a network of this package or of timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from condconv.errors import UsageError, few
from condconv.weights.arithmetic import TENSORFLOW, check_arithmetic
from condconv.weights.tensorflow_files import is_tensorflow_checkpoint, read_tensorflow_checkpoint

__all__ = ["from_tensorflow", "is_tensorflow_checkpoint", "read_tensorflow_checkpoint"]

# What holds layers in a checkpoint ("stem", "blocks_9", "blocks_9/se", "head") and what they are ("conv2d", ...).
_Key = tuple[str, str]
# The variables of a layer: leaf ("kernel", ...) to its whole name and values.
_Leaves = dict[str, tuple[str, NDArray[Any]]]
# The names and layers of a model by their keys in a checkpoint.
_Wanted = dict[_Key, list[tuple[str, Any]]]

_AVERAGE = "/ExponentialMovingAverage"
_COUNTERS = ("global_step", "beta1_power", "beta2_power")
_SCOPE = re.compile(r"stem|head|blocks_[0-9]+")
_LAYER = re.compile(
    r"(?:(?P<kind>(?:depthwise_)?(?:cond_)?conv2d|dense)|(?:\w+_)?(?P<norm>batch_normalization)(?:_v[0-9])?)"
    r"(?:_(?P<counter>[0-9]+))?"
)
_KERNELS = {
    "conv2d": "kernel",
    "depthwise_conv2d": "depthwise_kernel",
    "cond_conv2d": "condconv_kernel",
    "depthwise_cond_conv2d": "depthwise_condconv_kernel",
}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_REMEDY = "create tf_efficientnet_cc_... instead of efficientnet_cc_..., or tf_efficientnet_... without experts"


def from_tensorflow(
    variables: Mapping[str, NDArray[Any]], model: nn.Module, *, averaged: bool = True
) -> dict[str, Tensor]:
    """Map the variables of the authors' EfficientNet, with or without CondConv, to timm's names and torch's layout.

    Layers are matched by block, kind and the order of the counters in their names; the scopes around them and where the
    counters start do not matter. Slots of the optimizer and counters of its steps are left out.

    Args:
        variables: Name to array of any numeric dtype, from `read_tensorflow_checkpoint`.
        model: An EfficientNet of timm, whose convolutions may be `condconv.CondConv2d`; does not change. It
            must pad as TensorFlow does and have batch norms with eps 1e-3, as timm's `tf_efficientnet_...` do.
        averaged: Whether to take the moving average of a variable if there is one.

    Returns:
        A state dict with the content of the checkpoint, which may have static kernels for conditional layers, and
        another number of classes. Float32 on the CPU: kernels `[O, C/G, kh, kw]`, experts `[E, O, C/G, kh, kw]`, the
        classifier `[O, C]`, and the routing as `blocks.S.J.routing_fn.weight` `[E, C]` and `.bias` `[E]`. Batch norms
        come without `num_batches_tracked`, which torch does not ask for.

    Raises:
        UsageError: The model is not an EfficientNet, pads or normalises differently, or the checkpoint is of another
            network: the message has names, shapes and what the checkpoint seems to be.

    Source:
        Names and layouts of `models/official/efficientnet` in github.com/tensorflow/tpu.
    """
    wanted = _model_layers(model)
    check_arithmetic(model, TENSORFLOW, "a TensorFlow checkpoint")
    found = _checkpoint_layers(_select(variables, averaged))
    wanted = _as_far_as_conditional(wanted, found)
    summary = _describe(found)
    blocks, numbers = _blocks(wanted), _blocks(found)
    if numbers != blocks:
        held = f"blocks {few(map(str, numbers))}" if numbers else "no block"
        raise UsageError(f"`path` must hold blocks 0 to {len(blocks) - 1}, got {held}: {summary}")
    state: dict[str, Tensor] = {}
    for key, layers in wanted.items():
        group = found.get(key, {})
        if len(group) != len(layers):
            what = f"{len(layers)} {key[1]} in {key[0]} (for {few(target for target, _ in layers)})"
            raise UsageError(f"`path` must hold {what}, got {len(group)}: {summary}")
        for counter, (target, layer) in zip(sorted(group), layers, strict=True):
            state |= _convert(group[counter], key, target, layer, summary)
    extra = [name for group in found.values() for leaves in group.values() for name, _ in leaves.values()]
    if extra:
        raise UsageError(f"`path` must hold nothing without a place in the model, got {few(sorted(extra))}: {summary}")
    return state


def note_averages(variables: Mapping[str, NDArray[Any]], averaged: bool) -> tuple[str, ...]:
    """Return a note for the report if there are averages: whether they are taken."""
    count = sum(name.endswith(_AVERAGE) for name in variables)
    taken = "averages were taken: averaged=False takes the others" if averaged else "plain ones were taken, as asked"
    return (f"of {count} variables with a moving average the {taken}",) if count else ()


def _select(variables: Mapping[str, NDArray[Any]], averaged: bool) -> dict[str, NDArray[Any]]:
    """Return the variables to use under their own names: averages or not, without slots and counters of steps."""
    averages = {name.removesuffix(_AVERAGE): name for name in variables if name.endswith(_AVERAGE)}
    names = {name: name for name in variables if not name.endswith(_AVERAGE)}
    if averaged:
        names |= averages
    elif averages.keys() - names.keys():
        only = few(sorted(averages.keys() - names.keys()))
        raise UsageError(
            f"`averaged` must be True for this checkpoint, got False: it has only the average of {only}; leave it out"
        )
    return {
        name: variables[source]
        for name, source in names.items()
        # A slot has the name of its variable and one part more.
        if name.rpartition("/")[0] not in names and name.rpartition("/")[2] not in _COUNTERS
    }


def _checkpoint_layers(variables: Mapping[str, NDArray[Any]]) -> dict[_Key, dict[int, _Leaves]]:
    """Sort variables by layer, those of one key by their counters; no counter means 0."""
    found: dict[_Key, dict[int, _Leaves]] = {}
    unknown = []
    for name, values in variables.items():
        parts = name.split("/")
        depth = max((rank for rank, part in enumerate(parts) if _SCOPE.fullmatch(part)), default=len(parts) - 1)
        scope, *rest = parts[depth:]
        if rest[:1] == ["se"]:
            scope, rest = f"{scope}/se", rest[1:]
        layer = _LAYER.fullmatch(rest[0]) if len(rest) == 2 else None
        if layer is None:
            unknown.append(name)
            continue
        counters = found.setdefault((scope, layer["kind"] or layer["norm"]), {})
        other, _ = counters.setdefault(int(layer["counter"] or 0), {}).setdefault(rest[1], (name, values))
        if other != name:
            raise UsageError(
                f"`path` must hold each layer once, got {other} and {name}: leave out those of the other network"
            )
    if unknown:
        raise UsageError(
            f"`path` must hold the authors' EfficientNet by its names, got {few(sorted(unknown))}: leave out what "
            "does not belong to it"
        )
    return found


def _model_layers(model: nn.Module) -> _Wanted:
    """Return the names and layers of a model by their keys in a checkpoint, those of one key as they run."""
    wanted: _Wanted = {}

    def add(scope: str, kind: str, *names: str) -> None:
        for name in names:
            layer = _layer(model, name, "running_mean" if kind == "batch_normalization" else "kernel_size")
            conditional = kind.replace("conv2d", "cond_conv2d") if hasattr(layer, "num_experts") else kind
            wanted.setdefault((scope, conditional), []).append((name, layer))

    add("stem", "conv2d", "conv_stem")
    add("stem", "batch_normalization", "bn1")
    stages = _layer(model, "blocks", "named_children").named_children()
    names = [f"blocks.{stage}.{index}" for stage, blocks in stages for index, _ in blocks.named_children()]
    for number, name in enumerate(names):
        scope, block = f"blocks_{number}", model.get_submodule(name)
        expands = hasattr(block, "conv_pwl")
        pointwise = ("conv_pw", "conv_pwl") if expands else ("conv_pw",)
        add(scope, "conv2d", *(f"{name}.{conv}" for conv in pointwise))
        add(scope, "depthwise_conv2d", f"{name}.conv_dw")
        add(scope, "batch_normalization", *(f"{name}.bn{rank}" for rank in range(1, len(pointwise) + 2)))
        if hasattr(getattr(block, "se", None), "conv_reduce"):
            add(f"{scope}/se", "conv2d", f"{name}.se.conv_reduce", f"{name}.se.conv_expand")
        first: Any = block.get_submodule("conv_pw" if expands else "conv_dw")
        if hasattr(first, "num_experts"):
            # Where the model keeps its routing is its own affair; the sizes follow from the block's first layer.
            routing = nn.Linear(first.in_channels, first.num_experts, device="meta")
            wanted[scope, "dense"] = [(f"{name}.routing_fn", routing)]
    add("head", "conv2d", "conv_head")
    add("head", "batch_normalization", "bn2")
    if hasattr(getattr(model, "classifier", None), "in_features"):
        wanted["head", "dense"] = [("classifier", model.classifier)]
    return wanted


def _as_far_as_conditional(wanted: _Wanted, found: Mapping[_Key, dict[int, _Leaves]]) -> _Wanted:
    """Return the layers as in the checkpoint: static ones for conditional ones, and its number of classes.

    Whether the model can take one kernel for its experts, or other classes, is decided when it is loaded.
    """
    static: _Wanted = {}
    for (scope, kind), layers in wanted.items():
        plain = kind.replace("cond_", "")
        static[scope, plain if (scope, kind) not in found and (scope, plain) in found else kind] = layers
    for scope, kind in wanted:
        if kind == "dense" and scope != "head" and not any(s == scope and "cond_" in k for s, k in static):
            del static[scope, kind]
    kernels = [leaves["kernel"][1] for leaves in found.get(("head", "dense"), {}).values() if "kernel" in leaves]
    if ("head", "dense") in static and len(kernels) == 1 and kernels[0].ndim == 2:
        outputs = kernels[0].shape[1]
        static["head", "dense"] = [
            ("classifier", nn.Linear(static["head", "dense"][0][1].in_features, outputs, device="meta"))
        ]
    return static


def _layer(model: nn.Module, name: str, attribute: str) -> Any:
    """Return a layer by name, which must have an attribute."""
    try:
        layer = model.get_submodule(name)
        getattr(layer, attribute)
    except AttributeError as error:
        raise UsageError(
            f"`model` must be an EfficientNet as timm builds it, got {type(model).__name__} ({error}): {_REMEDY}"
        ) from error
    return layer


def _convert(leaves: _Leaves, key: _Key, target: str, layer: Any, summary: str) -> dict[str, Tensor]:
    """Take the variables of a layer out of `leaves` and return its parameters."""
    scope, kind = key
    state = {}
    for leaf, (parameter, shape) in _expected(kind, layer).items():
        if leaf not in leaves:
            held = few(name for name, _ in leaves.values()) or "nothing"
            raise UsageError(f"`path` must hold a {leaf} in {scope} for {target}, got {held}: {summary}")
        name, values = leaves.pop(leaf)
        if values.shape != shape:
            raise UsageError(f"`path` must hold shape {shape} in {name} for {target}, got {values.shape}: {summary}")
        if parameter == "weight":
            values = _to_torch(values, kind, layer)
        state[f"{target}.{parameter}"] = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    return state


def _expected(kind: str, layer: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the leaves that a layer has in a checkpoint: the parameter of each, and its shape in TensorFlow."""
    if kind == "batch_normalization":
        return {leaf: (parameter, (layer.num_features,)) for leaf, parameter in _NORM.items()}
    weight: tuple[int, ...]
    if kind == "dense":
        kernel, bias = "kernel", "bias"
        weight, outputs = (layer.in_features, layer.out_features), (layer.out_features,)
    else:
        # The kernels of all experts, and their biases, are the rows of one matrix.
        experts = (layer.num_experts,) if "cond_" in kind else ()
        kernel, bias = _KERNELS[kind], "condconv_bias" if experts else "bias"
        sizes = _kernel_shape(kind, layer)
        weight, outputs = (*experts, prod(sizes)) if experts else sizes, (*experts, layer.out_channels)
    return {kernel: ("weight", weight)} | ({} if layer.bias is None else {bias: ("bias", outputs)})


def _kernel_shape(kind: str, layer: Any) -> tuple[int, ...]:
    """Return the shape of one kernel in TensorFlow: taps, then channels in and out, or in and multiplier."""
    if kind.startswith("depthwise"):
        return (*layer.kernel_size, layer.in_channels, layer.out_channels // layer.groups)
    return (*layer.kernel_size, layer.in_channels // layer.groups, layer.out_channels)


def _to_torch(values: NDArray[Any], kind: str, layer: Any) -> NDArray[Any]:
    """Return a weight in torch's layout."""
    if kind == "batch_normalization":
        return values
    if kind == "dense":
        return values.T
    kernels = values.reshape(-1, *_kernel_shape(kind, layer))
    kernels = kernels.transpose((0, 3, 4, 1, 2) if kind.startswith("depthwise") else (0, 4, 3, 1, 2))
    kernels = kernels.reshape(len(kernels), layer.out_channels, -1, *layer.kernel_size)
    return kernels if "cond_" in kind else kernels[0]


def _blocks(layers: Mapping[_Key, Any]) -> list[int]:
    """Return the numbers of the blocks."""
    return sorted({int(scope.split("/")[0].removeprefix("blocks_")) for scope, _ in layers if scope[:6] == "blocks"})


def _describe(found: Mapping[_Key, dict[int, _Leaves]]) -> str:
    """Describe what network a checkpoint probably belongs to, and what to do."""
    experts: set[int] = set()
    classes: set[int] = set()
    for (scope, kind), group in found.items():
        for _, values in (pair for leaves in group.values() for pair in leaves.values()):
            if "cond_" in kind:
                experts.update(values.shape[:1])
            elif (scope, kind) == ("head", "dense"):
                classes.update(values.shape[-1:])
    sizes = (f"{' or '.join(map(str, sorted(each))) or 'no'}" for each in ({len(_blocks(found))}, experts, classes))
    held = ", ".join(f"{size} {what}" for size, what in zip(sizes, ("blocks", "experts", "classes"), strict=True))
    return f"the checkpoint seems to have {held}; create the network of that size"
