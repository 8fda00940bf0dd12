"""Make a routing function from the argument `routing`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.calls import resolve_call
from condconv.nn.fixed_routing import ConstantRouting, ExternalRouting
from condconv.nn.heads import Part
from condconv.nn.routing import HiddenRouting, HierarchicalRouting, SigmoidRouting, TopKRouting
from condconv.nn.routing_function import RoutingFunction
from condconv.nn.softmax_routing import SoftmaxRouting
from condconv.ops.scalars import positive

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
    parts: Sequence[Part] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Return the routing function of a layer or a block.

    Args:
        routing: A name (a key of `ROUTING`), also with options, such as `"softmax(temperature=30)"`; a factory that is
            called as `factory(in_channels, num_experts)`, and with `parts` if there are any; or a module, which is
            returned unchanged.
        in_channels: C of the routing function's input.
        num_experts: Number of experts, E.
        parts: The parts of the routing vector that the layer's experts want, `Experts.parts`.
        device: Device of its parameters.
        dtype: Dtype of its parameters.
        **options: Passed to the class of the name, or to the factory.

    Raises:
        UsageError: An unknown name, an option that it does not have, a module for another number of experts, or
            neither a name, nor callable, nor a factory of modules.
    """
    in_channels, num_experts = positive("in_channels", in_channels), positive("num_experts", num_experts)
    if isinstance(routing, nn.Module):
        wanted = num_experts if parts is None else sum(part.size for part in parts)
        found = getattr(routing, "num_weights", getattr(routing, "num_experts", wanted))
        if found != wanted:
            rule = f"num_experts = {num_experts} weights" if parts is None else f"{wanted} weights, of {_named(parts)}"
            raise UsageError(f"`routing` must give {rule}, got a module for {found}: make it for as many")
        return routing
    if isinstance(routing, str):
        make, given = resolve_call(routing, "routing", ROUTING, _options_of, "or give a factory or a module", **options)
        return make(in_channels, num_experts, parts=parts, device=device, dtype=dtype, **given)
    if not callable(routing):
        raise UsageError(
            f"`routing` must be a name, a factory or a module, got {type(routing).__name__} {shown(routing, 40)}: "
            f"names are {', '.join(ROUTING)}"
        )
    made = routing(in_channels, num_experts, **options, **({} if parts is None else {"parts": parts}))
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"`routing` must make a torch.nn.Module, got {type(made).__name__} from {shown(routing)}: return one"
        )
    return made.to(device=device, dtype=dtype)


def _named(parts: Sequence[Part]) -> str:
    return ", ".join(f"{part.name} ({part.size})" for part in parts)


def _options_of(make: Callable[..., nn.Module]) -> list[str]:
    """Return the options that a routing function's class and its bases take, without device and dtype."""
    kinds = [
        kind for kind in getattr(make, "__mro__", ()) if "__init__" in vars(kind) and issubclass(kind, RoutingFunction)
    ]
    parameters = [each for kind in kinds for each in inspect.signature(kind).parameters.values()]
    names = dict.fromkeys(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
    return [name for name in names if name not in ("device", "dtype", "parts")]


def even_weights(routing_fn: nn.Module) -> Tensor | None:
    """Return the weights `[E]` that a routing function would give every input at the start; it is left as it is.

    `None` if it does not say, as functions of other libraries and slots that no block has filled.
    """
    start = getattr(copy.deepcopy(routing_fn), "start_constant_", None)
    try:
        weights: Tensor | None = None if start is None else start()
    except (UsageError, RuntimeError):  # a slot without a block
        return None
    return weights


def start_constant_(routing_fn: nn.Module) -> Tensor:
    """Make a routing function give every input the same weights, in place, and return them, `[E]`.

    On the meta device they have no values: a state dict that is loaded later has them, and the experts too.

    Raises:
        UsageError: It has no method `start_constant_`, or its weights sum to zero.
    """
    start = getattr(routing_fn, "start_constant_", None)
    if start is None:
        raise UsageError(
            "`routing` must have a method start_constant_() to start from a trained kernel, got "
            f"{type(routing_fn).__name__}, which has none: derive it from condconv.nn.RoutingFunction"
        )
    weights: Tensor = start()
    if not weights.is_meta and not weights.sum().abs() > 0:
        raise UsageError(
            f"`routing` must start with weights that do not add up to 0, got {shown(weights.tolist())}: give others"
        )
    return weights
