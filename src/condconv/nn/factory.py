"""From what a user writes as `routing=` to a routing function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from condconv.nn.calls import parse_call
from condconv.nn.routing import (
    ConstantRouting,
    ExternalRouting,
    HiddenRouting,
    HierarchicalRouting,
    SigmoidRouting,
    TopKRouting,
)
from condconv.nn.softmax_routing import SoftmaxRouting

ROUTING: dict[str, Callable[..., nn.Module]] = {
    "sigmoid": SigmoidRouting,
    "softmax": SoftmaxRouting,
    "hidden": HiddenRouting,
    "hierarchical": HierarchicalRouting,
    "top_k": TopKRouting,
    "constant": ConstantRouting,
    "external": ExternalRouting,
}
Routing = str | Callable[..., nn.Module] | nn.Module


def make_routing(
    routing: Routing,
    in_channels: int,
    num_experts: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Return the routing function of a layer or a block.

    Args:
        routing: A name (a key of `ROUTING`), with options if need be, such as `"softmax(temperature=30)"`; a factory
            called as `factory(in_channels, num_experts)`; or a module, returned as it is.
        in_channels: C of the input to be routed.
        num_experts: E.
        device: Where its parameters are to live.
        dtype: Of its parameters.
        **options: Passed on to a name's class or a factory.

    Raises:
        ValueError: An unknown name, or a module for another number of experts.
        TypeError: Neither a name, nor callable, nor a factory of modules; or an option the name's class does not have.
    """
    if isinstance(routing, nn.Module):
        found = getattr(routing, "num_experts", num_experts)
        if found != num_experts:
            raise ValueError(f"routing must give num_experts = {num_experts} weights, got a module for {found}")
        return routing
    if isinstance(routing, str):
        name, given = parse_call(routing, "routing")
        if name not in ROUTING:
            raise ValueError(f"routing must be one of {', '.join(ROUTING)}, a factory or a module, got {routing!r}")
        return ROUTING[name](in_channels, num_experts, device=device, dtype=dtype, **given, **options)
    if not callable(routing):
        raise TypeError(f"routing must be a name, a factory or a module, got {type(routing).__name__}")
    made = routing(in_channels, num_experts, **options)
    if not isinstance(made, nn.Module):
        raise TypeError(f"routing must make a torch.nn.Module, got {type(made).__name__} from {routing!r}")
    return made.to(device=device, dtype=dtype)


def start_constant_(routing_fn: nn.Module) -> Tensor:
    """Make a routing function give every input the same weights, in place, and return them, `[E]`.

    On the meta device they have no values: a state dict that is loaded later brings them, and the experts with them.

    Raises:
        TypeError: It has no method `start_constant_`.
        ValueError: Its weights add up to nothing.
    """
    start = getattr(routing_fn, "start_constant_", None)
    if start is None:
        raise TypeError(
            "routing must have a method start_constant_() to start from a trained kernel, "
            f"{type(routing_fn).__name__} has none; derive it from condconv.nn.RoutingFunction"
        )
    weights: Tensor = start()
    if not weights.is_meta and not weights.sum().abs() > 0:
        raise ValueError(f"routing must start with weights that add up to more than 0, got {weights.tolist()}")
    return weights
