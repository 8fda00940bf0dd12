"""Networks that compute with the first k of their E experts, so that one training gives every k."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from condconv.errors import UsageError
from condconv.nn.block_routing import RoutingSlot, routing_functions
from condconv.nn.conditional import ConditionalLayer, conditional_layers
from condconv.nn.routing_function import RoutingFunction
from condconv.nn.standardization import Standardization


def elastic_experts(model: nn.Module) -> int:
    """Return E of a network whose layers can compute with their first experts only.

    Raises:
        UsageError: It has no conditional layers, or one whose experts or routing cannot do that, or with another E.
    """
    layers = conditional_layers(model)
    if not layers:
        raise UsageError("`model` must have conditional layers, got a network without: convert one, or train with some")
    numbers = {layer.num_experts for layer in layers.values()}
    if len(numbers) > 1:
        raise UsageError(
            f"`model` must have one number of experts in all layers, got {sorted(numbers)}: convert all layers at once"
        )
    functions = routing_functions(model)
    for name, layer in layers.items():
        experts, routing_fn = layer.experts, functions[layer.routing_fn]
        if (reason := experts.why_not_fewer) is not None:
            raise UsageError(
                f"`experts` must be such that the first of them are a layer, got {type(experts).__name__} in {name!r}: "
                f"{reason}; take experts='deltas'"
            )
        why_not: Any = getattr(routing_fn, "why_not_fewer", "it does not say how it gives fewer weights")
        if why_not is not None:
            raise UsageError(
                f"`routing` must give each expert a weight of its own, got {type(routing_fn).__name__} for {name!r}: "
                f"{why_not}; take routing='sigmoid(standardize=True)'"
            )
    return numbers.pop()


def activate_(model: nn.Module, num_experts: int | None) -> None:
    """Let all layers compute with their first experts, in place; `None` for all, 0 for the shared kernels alone."""
    for layer in conditional_layers(model).values():
        layer.experts.active = None if num_experts == layer.num_experts else num_experts


@contextmanager
def smaller_member(model: nn.Module, num_experts: int) -> Iterator[None]:
    """Compute with the first experts inside this context, forward and backward, and leave running statistics alone.

    Those of the largest member are what the trained network is evaluated with; the others' are estimated when such a
    member is chosen.
    """
    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, ConditionalLayer):
                undo.callback(setattr, module.experts, "active", module.experts.active)
            elif isinstance(module, _NormBase) and module.training and module.track_running_stats:
                undo.callback(setattr, module, "track_running_stats", True)
                module.track_running_stats = False  # in training: normalised by the batch, which is not recorded
            elif isinstance(module, Standardization) and module.training:
                undo.callback(setattr, module, "training", True)
                module.training = False  # running statistics normalise in training too
        activate_(model, num_experts)
        yield


def sandwich(num_experts: int) -> tuple[int, ...]:
    """Return the members to train in one step: the largest, the smallest and up to two between, at random.

    Source:
        The sandwich rule of universally slimmable networks (arXiv:1903.05134).
    """
    between = 1 + torch.randperm(num_experts - 1)[:2]
    return (num_experts, 0, *between.tolist())


def keep_first_(model: nn.Module, num_experts: int) -> None:
    """Remove all but the first experts from layers and routing functions, at least one, in place."""
    for module in list(model.modules()):
        if isinstance(module, ConditionalLayer):
            module.experts.keep_(num_experts)
        elif isinstance(module, RoutingFunction):
            module.keep_(num_experts)
        elif isinstance(module, RoutingSlot):
            module.num_experts = module.num_weights = num_experts
            module.start = None if module.start is None else module.start[:num_experts].clone()
