"""Networks that compute with the first k of their experts or ranks, so that one training gives every k."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from condconv.errors import UsageError, few
from condconv.nn.block_routing import RoutingSlot, routing_functions
from condconv.nn.conditional import ConditionalLayer, conditional_layers
from condconv.nn.routing_function import RoutingFunction
from condconv.nn.standardization import Standardization


class Units(NamedTuple):
    """What the members of an elastic network differ by: member k computes with the first k in each layer.

    Attributes:
        name: `"experts"` or `"ranks"`, as `Experts.unit`.
        number: Of the largest member; a layer that has fewer uses all of its own.
    """

    name: str
    number: int


def elastic_units(model: nn.Module) -> Units:
    """Return what the members of a network differ by.

    Raises:
        UsageError: It has no conditional layers, or one whose experts or routing cannot be cut, or some that differ by
            experts and some by ranks, or by different numbers of experts.
    """
    layers = conditional_layers(model)
    if not layers:
        raise UsageError("`model` must have conditional layers, got a network without: convert one, or train with some")
    for name, layer in layers.items():
        if (reason := layer.experts.why_not_fewer) is not None:
            raise UsageError(
                f"`experts` must be such that the first of them are a layer, got {type(layer.experts).__name__} in "
                f"{name!r}: {reason}; take experts='deltas' or 'shared'"
            )
    units = {layer.experts.unit for layer in layers.values()}
    if len(units) > 1:
        raise UsageError(
            f"`model` must have layers that all have fewer experts or all fewer ranks, got {few(sorted(units))}: give "
            "all layers experts of one kind"
        )
    if units == {"experts"}:
        _check_experts(model)
    return Units(units.pop(), max(layer.experts.units for layer in layers.values()))


def _check_experts(model: nn.Module) -> None:
    """Check that routing functions can give fewer weights, and that all layers have equally many.

    Raises:
        UsageError: They cannot, or have not.
    """
    layers = conditional_layers(model)
    numbers = {layer.num_experts for layer in layers.values()}
    if len(numbers) > 1:
        raise UsageError(
            f"`model` must have one number of experts in all layers, got {sorted(numbers)}: convert all layers at once"
        )
    functions = routing_functions(model)
    for name, layer in layers.items():
        routing_fn = functions[layer.routing_fn]
        why_not: Any = getattr(routing_fn, "why_not_fewer", "it does not say how it gives fewer weights")
        if why_not is not None:
            raise UsageError(
                f"`routing` must give each expert a weight of its own, got {type(routing_fn).__name__} for {name!r}: "
                f"{why_not}; take routing='sigmoid(standardize=True)', or experts='shared' with any routing"
            )


def activate_(model: nn.Module, number: int | None) -> None:
    """Let all layers compute with their first units, in place; `None` for all, 0 for the shared kernels alone."""
    for layer in conditional_layers(model).values():
        layer.experts.activate_(number)


@contextmanager
def smaller_member(model: nn.Module, number: int) -> Iterator[None]:
    """Compute with the first units inside this context, forward and backward, and leave running statistics alone.

    Those of the largest member are what the trained network is evaluated with; the others' are estimated when such a
    member is chosen.
    """
    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, ConditionalLayer):
                undo.callback(module.experts.activate_, module.experts.active)
            elif isinstance(module, _NormBase) and module.training and module.track_running_stats:
                undo.callback(setattr, module, "track_running_stats", True)
                module.track_running_stats = False  # in training: normalised by the batch, which is not recorded
            elif isinstance(module, Standardization) and module.training:
                undo.callback(setattr, module, "training", True)
                module.training = False  # running statistics normalise in training too
        activate_(model, number)
        yield


def sandwich(largest: int) -> tuple[int, ...]:
    """Return the members to train in one step: the largest, the smallest and up to two between, at random.

    Source:
        The sandwich rule of universally slimmable networks (arXiv:1903.05134).
    """
    between = 1 + torch.randperm(largest - 1)[:2]
    return (largest, 0, *between.tolist())


def keep_first_(model: nn.Module, number: int) -> None:
    """Remove all but the first units from layers, at least one, in place; routing functions lose weights of experts."""
    layers = conditional_layers(model).values()
    for layer in layers:
        layer.experts.keep_(number)
    if any(layer.experts.unit == "experts" for layer in layers):
        _keep_weights_(model, number)


def _keep_weights_(model: nn.Module, num_experts: int) -> None:
    for module in list(model.modules()):
        if isinstance(module, RoutingFunction):
            module.keep_(num_experts)
        elif isinstance(module, RoutingSlot):
            module.num_experts = module.num_weights = num_experts
            module.start = None if module.start is None else module.start[:num_experts].clone()
