"""Fit a source's tensors to the network's shapes: unchanged, as flattened experts, or one kernel for all experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from condconv.nn import RoutingFunction
from condconv.weights.layers import Layers


@dataclass(frozen=True)
class Fit:
    """What a source's tensors are for a network.

    Attributes:
        copies: Tensors in the network's shapes, by the network's names.
        static: Names of conditional layers for which the source has one static kernel.
        missing: Names of the network that the source lacks.
        misfits: Names of the network that have another shape in the source.
    """

    copies: dict[str, Tensor]
    static: tuple[str, ...]
    missing: tuple[str, ...]
    misfits: tuple[str, ...]


def fit_tensors(layers: Layers, tensors: Mapping[str, Tensor]) -> Fit:
    """Return how a source's tensors fit a network; nothing is changed.

    Args:
        layers: The network.
        tensors: By the network's names.
    """
    conditional = layers.conditional
    static = [
        name
        for name, layer in conditional.items()
        if f"{name}.weight" in tensors
        and _same(tensors[f"{name}.weight"], layer.experts.spec.shape) is not None
        and not tensors.keys() & layers.parts(name)
    ]
    replaced = {f"{name}.{leaf}" for name in static for leaf in ("weight", "bias")}
    optional = _optional(layers, static)
    copies, missing, misfits = {}, [], []
    for name, target in layers.tensors.items():
        if name in replaced and name in tensors:
            continue
        if name not in tensors:
            if name not in optional:
                missing.append(name)
            continue
        layer = conditional.get(name.rpartition(".")[0])
        fitted = _experts(tensors[name], target) if layer is not None else _same(tensors[name], target.shape)
        if fitted is None:
            misfits.append(name)
        else:
            copies[name] = fitted
    for name in static:
        found, spec = tensors.get(f"{name}.bias"), conditional[name].experts.spec
        if found is not None and spec.bias and _same(found, (spec.out_channels,)) is None:
            misfits.append(f"{name}.bias")
    return Fit(copies, tuple(static), tuple(missing), tuple(misfits))


def _same(tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return a tensor in a shape, or `None`; dimensions of size one may be added or dropped."""
    if tensor.shape == shape:
        return tensor
    lean = [[size for size in each if size != 1] for each in (tensor.shape, shape)]
    close = lean[0] == lean[1] and {tensor.dim(), len(shape)} == {2, 4} and 1 not in tensor.shape[:2]
    return tensor.reshape(shape) if close else None


def _experts(tensor: Tensor, target: Tensor) -> Tensor | None:
    """Return experts `[E, ...]` or flattened `[E, P]` in the shape of the network's, or `None`."""
    if tensor.shape == target.shape:
        return tensor
    flat = tensor.dim() == 2 and tensor.shape[0] == target.shape[0] and tensor.numel() == target.numel()
    return tensor.reshape(target.shape) if flat else None


def _optional(layers: Layers, static: list[str]) -> set[str]:
    """Return names that a source may lack: counters, schedules, and routing of layers that start from one kernel."""
    started = {layers.function(name) for name in static}
    names = {name for name in layers.tensors if name.endswith("num_batches_tracked")}
    names |= {part for name in static for part in layers.parts(name)}
    for prefix, module in layers.modules.items():
        if module in started:
            names |= {f"{prefix}.{name}" for name in module.state_dict()}
        elif isinstance(module, RoutingFunction):
            names |= {f"{prefix}.{name}" for name, _ in module.named_buffers()}
    return names


def mixed_routing(layers: Layers, fit: Fit) -> dict[str, str]:
    """Return reasons by layer name, for layers with one static kernel whose routing the source has trained."""
    reasons = {}
    for layer_name in fit.static:
        function = layers.names[layers.function(layer_name)]
        trained = [name for name in fit.copies if name.startswith(f"{function}.")]
        if any(name.endswith("weight") for name in trained):
            reasons[layer_name] = f"it has one kernel for {layer_name} and a trained routing for it, {trained[0]}"
    return reasons
