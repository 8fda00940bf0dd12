"""Make the conditional layers of a model, and route its blocks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from condconv.convert.record import Conversion
from condconv.convert.scope import Group
from condconv.errors import UsageError, few
from condconv.nn import (
    ConditionalLayer,
    HierarchicalRouting,
    KernelSpec,
    Part,
    RoutingSlot,
    make_experts,
    make_routing,
    route_block_,
)
from condconv.nn.block_routing import ClearSlot
from condconv.nn.classes import conditional_class
from condconv.nn.factory import Routing, even_weights, start_constant_

_OF_LAYERS = ("init", "expert_spread", "experts", "impl")


def build_layers(
    model: nn.Module, conversion: Conversion, old_layers: Mapping[str, nn.Module], undo: ExitStack
) -> dict[str, ConditionalLayer]:
    """Return a conditional layer for each old one, by name, with the blocks of the groups routed.

    Args:
        model: The model of the layers; its blocks gain routing functions and hooks.
        conversion: How layers become conditional, and which share a routing function.
        old_layers: The static layers by name.
        undo: A list that gets a callback for each routed block.

    Raises:
        UsageError: A routing module for several groups, or experts that are larger than the memory.
    """
    _check_memory(conversion, old_layers)
    groups, routing, num_experts = conversion.groups, conversion.routing, conversion.num_experts
    if isinstance(routing, nn.Module) and len(groups) > 1:
        raise UsageError(
            f"`routing` must be a name or a factory for {len(groups)} routing functions, got one module: give its "
            "class or a functools.partial of it, or scope='network'"
        )

    def make(old: nn.Module, routing: Routing) -> ConditionalLayer:
        twin = conditional_class(old)
        options: dict[str, Any] = {name: getattr(conversion, name) for name in _OF_LAYERS}
        return twin.from_static(old, num_experts, routing=routing, **options)

    layers: dict[str, ConditionalLayer] = {}
    previous: RoutingSlot | None = None
    led = [group for group in groups if group.leader is not None]
    for group in groups:
        if group.leader is None or group.channels is None:
            (name,) = group.layers
            layers[name] = make(old_layers[name], routing)
            continue
        block = model.get_submodule(group.leader)
        first = old_layers[group.layers[0]].weight
        parts = _common_parts(conversion, {name: old_layers[name] for name in group.layers})
        routing_fn = _make_routing(routing, group.channels, num_experts, parts, first, previous)
        chained = isinstance(routing_fn, HierarchicalRouting)
        size = None if parts is None else sum(part.size for part in parts)
        slot = RoutingSlot(f"block {group.leader!r}", num_experts, size)
        at_start = start_constant_ if conversion.init == "same_output" else even_weights
        slot.start = at_start(routing_fn)
        if not any(_learns(old_layers[name]) for name in group.layers):
            routing_fn.requires_grad_(False)
        for name in group.layers:
            layers[name] = make(old_layers[name], slot)
        routed = route_block_(
            block,
            routing_fn.train(block.training),
            [],
            slot=slot,
            until=model.get_submodule(group.last),  # where it is a layer, its hooks move along to the new one
            previous=previous if chained else None,
            hand_over=chained and group is not led[-1],
        )
        undo.callback(routed.remove)
        if chained or group.last != group.leader:
            # A forward that ends early must not leave weights behind for the next.
            undo.callback(model.register_forward_hook(ClearSlot(slot), always_call=True).remove)
        previous = slot
    return layers


def _check_memory(conversion: Conversion, old_layers: Mapping[str, nn.Module]) -> None:
    """Check that experts have room: a report of a few kilobytes could ask for any amount, and the system end others.

    Experts of a factory are not made twice, and only whoever converts can give one.

    Raises:
        UsageError: They are larger than the machine's memory.
    """
    experts, number = conversion.experts, conversion.num_experts
    own = [each for each in old_layers.values() if next(each.parameters()).device.type == "cpu"]
    memory = _memory()
    if not isinstance(experts, str) or memory is None:
        return
    made = (make_experts(experts, KernelSpec.of(each), number, device="meta") for each in own)
    needed = sum(each.nbytes for store in made for each in store.parameters())
    if needed > memory:
        raise UsageError(
            f"`num_experts` must leave the experts smaller than the memory of {memory / 2**30:.0f} GiB, got {number}, "
            f"with which they take {needed / 2**30:.0f} GiB: give fewer, or convert fewer layers"
        )


def _memory() -> int | None:
    """Return the bytes of the machine's memory; `None` if the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def frozen_notes(groups: Sequence[Group], old_layers: Mapping[str, nn.Module]) -> list[str]:
    """Return notes on frozen layers for the report: their routing is frozen, unless layers that learn share it.

    Args:
        groups: Which layers share a routing.
        old_layers: The static layers by name.
    """
    frozen = [[name for name in group.layers if not _learns(old_layers[name])] for group in groups]
    alone = [
        name for group, names in zip(groups, frozen, strict=True) for name in names if len(names) == len(group.layers)
    ]
    moved = [
        name for group, names in zip(groups, frozen, strict=True) for name in names if len(names) < len(group.layers)
    ]
    notes = [f"frozen, and so is their routing: {few(alone)}"] if alone else []
    if moved:
        notes.append(
            f"frozen, but what they compute will change, since their routing learns with other layers: {few(moved)}; "
            "leave them out by `skip`, or take scope='layer'"
        )
    return notes


def _learns(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for name, parameter in layer.named_parameters() if name == "weight")


def _common_parts(conversion: Conversion, old_layers: Mapping[str, nn.Module]) -> tuple[Part, ...] | None:
    """Return the parts of the routing vector that the layers of a group want.

    Raises:
        UsageError: They want different ones.
    """
    wanted = {
        name: make_experts(conversion.experts, KernelSpec.of(old), conversion.num_experts, device="meta").parts
        for name, old in old_layers.items()
    }
    (first, parts), *others = wanted.items()
    for name, other in others:
        if other != parts:
            raise UsageError(
                f"`scope` must be 'layer' for experts whose routing has a number per channel, got {first!r} and "
                f"{name!r} in one scope, whose channels differ: route each layer by itself"
            )
    return parts


def _make_routing(
    routing: Routing,
    channels: int,
    num_experts: int,
    parts: tuple[Part, ...] | None,
    like: Any,
    previous: RoutingSlot | None,
) -> nn.Module:
    """Return the routing function of a block, on the device of a weight; in a chain it takes the previous weights.

    Args:
        routing: As in `convert_`.
        channels: C of the block's input.
        num_experts: Number of experts, E.
        parts: The parts of the routing vector.
        like: The weight.
        previous: Slot of the previous block; `None` for the first.
    """
    options: dict[str, Any] = {"parts": parts, "device": like.device, "dtype": like.dtype}
    routing_fn = make_routing(routing, channels, num_experts, **options)
    if previous is None or not isinstance(routing_fn, HierarchicalRouting):
        return routing_fn
    return make_routing(routing, channels, num_experts, previous_experts=previous.num_experts, **options)
