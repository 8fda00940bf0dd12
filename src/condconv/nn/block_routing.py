"""Routing shared by the layers of a block, or of several: computed once, from the block's input.

The block keeps its class, names and attributes. It gains a child `routing_fn` and two hooks: one computes the weights
into a slot before the block runs, the other empties the slot after it. The layers hold that slot as their `routing_fn`.
All state is in the slot, which the block and its layers own: a copy of the model has its own, models do not interfere,
and a forward that is run again (activation checkpointing) fills it again. A layer copied without its block reads the
slot of the original. A layer that is called while the slot is empty raises an error instead of using stale weights.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.hooks import RemovableHandle

from condconv.errors import UsageError, shown
from condconv.ops.scalars import flag

_CHILD = "routing_fn"


class RoutingSlot(nn.Module):
    """Holds a block's routing weights while the block runs, and gives them to its layers.

    Args:
        scope: Name of the block (or blocks), for messages.
        num_experts: Number of experts, E.
        num_weights: Length of the routing vector, N; `None` for E.

    Attributes:
        start: `[E]`, the weights that the block starts with for every input, for layers made from static ones.
        origin: The slot that this one is a copy of, if no block was copied with it; otherwise `None`.
    """

    origin: RoutingSlot | None

    def __init__(self, scope: str, num_experts: int, num_weights: int | None = None) -> None:
        super().__init__()
        self.scope = scope
        self.num_experts = num_experts
        self.num_weights = num_experts if num_weights is None else num_weights
        self.start: Tensor | None = None
        self.__dict__["origin"] = None  # not a child, which would be in the model twice
        self._running = threading.local()  # two threads may run one model at a time

    def fill(self, weights: Tensor) -> None:
        """Store the weights `[B, E]` of the running forward."""
        self._running.weights = weights

    def clear(self) -> None:
        """Remove the weights, from the slot that is read."""
        self.filled()._running.weights = None

    def filled(self) -> RoutingSlot:
        """Return the slot that a block fills: this one, or the one that it is a copy of."""
        return self if self.origin is None else self.origin.filled()

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights `[B, E]`; x, the layer's own input, is ignored.

        Raises:
            UsageError: The block is not running.
        """
        weights = getattr(self.filled()._running, "weights", None)
        if weights is None:
            copied = (
                "" if self.origin is None else " (it is a copy, made without that module, and reads the original's)"
            )
            raise UsageError(
                f"`routing_weights` must come from {self.scope}, which is not running{copied}, got None: call that "
                "module, or pass routing_weights; with activation checkpointing, checkpoint a module that contains it"
            )
        return weights

    def start_constant_(self) -> Tensor:
        """Return `start`; the routing function itself belongs to the block.

        Raises:
            UsageError: It is not set.
        """
        if self.start is None:
            raise UsageError(
                f"`start` must be set before layers routed by {self.scope} are made from static ones, got None: give "
                "the slot the weights [E] that the block starts with"
            )
        return self.start

    def extra_repr(self) -> str:
        """Show in `repr` where the weights come from."""
        return f"from {self.scope}"

    def __deepcopy__(self, memo: dict[int, Any]) -> RoutingSlot:
        copied: RoutingSlot = memo.setdefault(id(self), type(self).__new__(type(self)))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if self.origin is None:
            copied.__dict__["origin"] = self
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model starts outside any forward, even when the original was left in the middle of one.
        return {name: value for name, value in self.__dict__.items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._running = threading.local()

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise UsageError(
            "`module` must not have routing shared by a block under nn.DataParallel, got layers routed by "
            f"{self.scope}: its threads would share one slot, use torch.nn.parallel.DistributedDataParallel"
        )


class FillSlot:
    """The forward pre-hook: compute the block's weights. An object, not a closure, so that models pickle."""

    def __init__(self, slot: RoutingSlot, previous: RoutingSlot | None) -> None:
        self.slot = slot
        self.previous = previous

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.slot.__dict__["origin"] = None  # the block was copied too, and fills the copy

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Route by the first tensor among the arguments."""
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if x is None:
            traced = any(isinstance(value, Proxy) for value in (*args, *kwargs.values()))
            remedy = "pass it as an argument of its own, not inside of another"
            remedy = "torch.fx traces with proxies, trace with torch.export instead" if traced else remedy
            raise UsageError(f"`x` must be a tensor, for {self.slot.scope} to be routed by, got none: {remedy}")
        routing_fn = getattr(block, _CHILD)
        if self.previous is None:
            self.slot.fill(routing_fn(x))
        else:
            self.slot.fill(routing_fn(x, self.previous(x)))
            self.previous.clear()


class ClearSlot:
    """The forward hook of the last module that reads the weights."""

    def __init__(self, slot: RoutingSlot) -> None:
        self.slot = slot

    def __call__(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Empty the slot."""
        self.slot.clear()


@dataclass(frozen=True)
class BlockRouting:
    """A block routed by `route_block_`.

    Attributes:
        slot: Gives the weights to the layers.
        block: The block, which owns the routing function as its child `routing_fn`.
        handles: The handles of the two hooks.
    """

    slot: RoutingSlot
    block: nn.Module
    handles: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Remove the hooks and the routing function; the layers keep the slot."""
        for handle in self.handles:
            handle.remove()
        delattr(self.block, _CHILD)


def route_block_(
    block: nn.Module,
    routing_fn: nn.Module,
    layers: Iterable[nn.Module],
    *,
    slot: RoutingSlot | None = None,
    until: nn.Module | None = None,
    previous: RoutingSlot | None = None,
    hand_over: bool = False,
) -> BlockRouting:
    """Route conditional layers by the input of the block they belong to, in place.

    Args:
        block: The module whose first tensor argument decides the routing; gains the child `routing_fn` and hooks.
        routing_fn: Takes that tensor (and with `previous` the previous weights) and returns `[B, E]`.
        layers: The conditional layers; each gets the slot as its `routing_fn`.
        slot: The slot to use; `None` for a new one.
        until: The last module that reads the weights, if it is outside `block`; `None` for `block` itself. If a
            forward pass ends before it, the weights stay: clear the slot then, as `convert_` does.
        previous: The slot of the previous block, whose weights `routing_fn` takes too (hierarchical routing).
        hand_over: Keep the weights for a following block that has this slot as its `previous`.

    Returns:
        The slot, and what is needed to undo the change.

    Raises:
        UsageError: The block has an attribute `routing_fn`, or is a container that would run it as a layer; or an
            argument is not a module.

    Source:
        CondConv, section 4 and the authors' code: one routing for each block, used by all its convolutions.

    Example:
        >>> class Separable(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.depthwise = condconv.CondConv2d(8, 8, 3, padding=1, groups=8, num_experts=4)
        ...         self.pointwise = condconv.CondConv2d(8, 16, 1, num_experts=4)
        ...
        ...     def forward(self, x):
        ...         return self.pointwise(self.depthwise(x))
        >>> block = Separable()
        >>> routed = route_block_(block, condconv.nn.SigmoidRouting(8, 4), [block.depthwise, block.pointwise])
        >>> block(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """
    for name, module in (("block", block), ("routing_fn", routing_fn), ("until", block if until is None else until)):
        if not isinstance(module, nn.Module):
            raise UsageError(f"`{name}` must be a torch.nn.Module, got {shown(module)}: give the module itself")
    if isinstance(block, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise UsageError(
            f"`block` must not be a container that would run its child `routing_fn` as a layer, got a "
            f"{type(block).__name__}: choose the module around it, or route each layer by itself"
        )
    if hasattr(block, _CHILD):
        raise UsageError(
            f"`block` must not have an attribute `{_CHILD}` yet, got a {type(block).__name__} with one: it is routed "
            "already, so convert all its layers at once, or the others with scope='layer'"
        )
    layers = [*layers] if isinstance(layers, Iterable) else [layers]
    if strange := [layer for layer in layers if not isinstance(layer, nn.Module) or not hasattr(layer, _CHILD)]:
        raise UsageError(f"`layers` must be conditional layers, got {shown(strange[0])}: give those of the block")
    for name, given in (("slot", slot), ("previous", previous)):
        if not isinstance(given, RoutingSlot | None):
            raise UsageError(
                f"`{name}` must be a RoutingSlot or None, got {shown(given)}: take `.slot` of a BlockRouting"
            )
    hand_over = flag("hand_over", hand_over)
    if slot is None:
        slot = RoutingSlot(f"its {type(block).__name__}", int(getattr(routing_fn, "num_experts", 0)))
    block.add_module(_CHILD, routing_fn)
    handles = [block.register_forward_pre_hook(FillSlot(slot, previous), with_kwargs=True)]
    if not hand_over:
        # Not after a part of the block, which may be skipped (stochastic depth).
        last = block if until is None or until in set(block.modules()) else until
        handles.append(last.register_forward_hook(ClearSlot(slot), always_call=True))
    for layer in layers:
        layer.routing_fn = slot
    return BlockRouting(slot, block, tuple(handles))


def routing_functions(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the function that computes the weights for each object that a layer of the model holds as `routing_fn`.

    For a slot this is the block's function, for a routing function the function itself.

    Args:
        model: Any module.

    Raises:
        UsageError: It has a layer of a block, but not the block.
    """
    owners: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, FillSlot):
                owners[hook.slot] = getattr(module, _CHILD)
    held = (getattr(module, _CHILD, None) for module in model.modules() if hasattr(module, "num_experts"))
    functions = {routing: owners.get(_filled(routing), routing) for routing in held if isinstance(routing, nn.Module)}
    functions |= owners
    for routing, function in functions.items():
        if isinstance(function, RoutingSlot):
            raise UsageError(
                f"`model` must hold the block that routes its layers, got a part without it ({routing.extra_repr()}): "
                "give the network that contains the block"
            )
    return functions


def _filled(routing: nn.Module) -> nn.Module:
    """Return the slot that a block fills for a layer that holds a slot, and the routing function itself for others."""
    return routing.filled() if isinstance(routing, RoutingSlot) else routing
