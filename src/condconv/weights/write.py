"""The only stage of a load that changes the network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.nn.block_routing import RoutingSlot
from condconv.nn.factory import start_constant_
from condconv.weights.layers import Layers


def check_starts(layers: Layers, names: Iterable[str]) -> None:
    """Check on copies whether the routing functions of some layers can start evenly; nothing is changed.

    Args:
        layers: The network.
        names: Of conditional layers.

    Raises:
        UsageError: One cannot.
    """
    for name in names:
        function = layers.function(name)
        try:
            start_constant_(copy.deepcopy(function))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"`model` must have routing functions that can start evenly, got {type(function).__name__} for {name}, "
                f"which has one kernel in the source ({error}): create the network with another routing"
            ) from error


@torch.no_grad()
def copy_tensors_(layers: Layers, copies: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network, in place; its parameters stay the same objects.

    Args:
        layers: The network.
        copies: Tensors in the network's shapes, by its names.
    """
    for name, tensor in copies.items():
        layers.tensors[name].copy_(tensor)


@torch.no_grad()
def start_routing_(layers: Layers, names: Iterable[str]) -> dict[str, Tensor]:
    """Make the routing functions of some layers give every input the same weights, in place.

    Args:
        layers: The network.
        names: Of conditional layers.

    Returns:
        These weights, `[E]` fp64 on the CPU, by layer.
    """
    starts: dict[nn.Module, Tensor] = {}
    found = {}
    for name in names:
        function = layers.function(name)
        if function not in starts:
            starts[function] = start_constant_(function).to("cpu", torch.float64)
        found[name] = starts[function]
        slot = layers.conditional[name].routing_fn
        if isinstance(slot, RoutingSlot):
            slot.start = starts[function]
    return found


@torch.no_grad()
def spread_kernels_(
    layers: Layers, starts: Mapping[str, Tensor], tensors: Mapping[str, Tensor], expert_spread: float
) -> None:
    """Make the experts of some layers of one kernel each, in place.

    Args:
        layers: The network.
        starts: Weights `[E]` that every input is given at the start, by layer.
        tensors: Kernels and biases by the network's names.
        expert_spread: Difference between experts, relative to the standard deviation of the kernel.
    """
    for name, start in starts.items():
        layer = layers.conditional[name]
        started = layer.experts.with_own_parameters()
        own = next(started.parameters())
        kernel = nn.Parameter(tensors[f"{name}.weight"].to(own).reshape(started.spec.shape), own.requires_grad)
        bias = tensors.get(f"{name}.bias") if started.spec.bias else None
        started.start_from_(kernel, None if bias is None else bias.to(own), start, expert_spread)
        for held, value in zip(layer.experts.state_dict().values(), started.state_dict().values(), strict=True):
            held.copy_(value)  # optimizers hold the parameter
