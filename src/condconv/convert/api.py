"""`convert_`: give a network's layers experts, in place, without changing its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from condconv.convert import refusals
from condconv.convert.blocks import Blocks
from condconv.convert.choose import choose_layers
from condconv.convert.exchange import exchange_layers_
from condconv.convert.optimizers import check_optimizers
from condconv.convert.record import Conversion
from condconv.convert.report import ConversionReport
from condconv.convert.scope import Scope, group_layers
from condconv.convert.select import Selector
from condconv.counting.tracing import Trace, trace
from condconv.errors import UsageError, shown
from condconv.nn.choice import LayerChoice
from condconv.nn.conditional import LEARNING
from condconv.nn.experts import ExpertsOption, resolve_experts
from condconv.nn.factory import Routing
from condconv.nn.methods import resolve_method


def convert_(
    model: nn.Module,
    num_experts: int | None = None,
    *,
    layers: Selector | LayerChoice | None = None,
    skip: Selector | LayerChoice | None = None,
    routing: Routing | None = None,
    scope: str | Scope = "layer",
    classifier: bool = False,
    example_input: Any = None,
    init: str = "same_output",
    expert_spread: float = 0.5,
    experts: ExpertsOption | None = None,
    method: str | None = None,
    impl: str = "auto",
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
) -> ConversionReport:
    """Replace convolutions of a network by conditional ones, in place; its output stays the same.

    The mixture starts as the trained kernel, whatever the input and the experts; batch norm statistics therefore stay
    valid. By default experts are differences from that kernel and routers see standardised features, which learns; the
    paper's layers are `experts="dense", routing="sigmoid", init="random"`. The conversion is all or nothing: after an
    error the model is unchanged. The output is checked on the example. The routing of frozen layers is frozen too.

    Args:
        model: Any module; changed in place.
        num_experts: Number of experts, E; `None` for 8, or for what the method has.
        layers: Which layers: a `LayerChoice` (a pattern of names, several, or a function), or a selector of
            `condconv.select`; `None` for all convolutions that run on the example and have more than one output pixel
            (so neither squeeze-and-excitation nor heads for training only). A pattern chooses convolutions, and a
            linear layer only if it is its full name; a function is asked about linear layers too.
        skip: Which of them stay static, in the same forms; `None` for none.
        routing: A name, also with options as in `"softmax(temperature=30)"`, a factory called with
            `(in_channels, num_experts)`, or (scope `"network"` only) a module; `None` for
            `"sigmoid(standardize=True)"`.
        scope: `"layer"`, `"block"`, `"block(every=2)"`, `"network"` or a `Scope`.
        classifier: Also convert the last linear layer that runs, for any `layers` and `skip`; it routes by its own
            input unless the scope is `"network"`.
        example_input: A tensor or a tuple of arguments for the model; `None` to use an image of the usual size. Its run
            shows the order of the layers, the channels of blocks and the costs.
        init: `"same_output"`, or `"random"` to train from scratch as the paper does: experts are drawn separately and
            the routing at random, so the output is a new network's; each expert's bias is the old layer's.
        expert_spread: Difference between experts, relative to the standard deviation of the kernel.
        experts: What kernels are made of: `"deltas"`, a shared kernel and E routed differences; `"dense"`, E whole
            kernels; `"shared"`, one kernel with small routed parts, also with options as in `"shared(rank=16)"` (see
            `condconv.nn.SharedExperts`); or a factory of `condconv.nn.Experts`; `None` for `"deltas(scale=0.1)"`, which
            suits fine-tuning: take `"deltas"` to train from scratch with SGD. A layer that cannot have them stays
            static, with the reason in the report.
        method: A published method by name instead of `routing` and `experts`, as in `condconv.CondConv2d`.
        impl: As in `condconv.ops.cond_conv2d`.
        optimizer: An optimizer of the model's parameters, or several. New parameters replace the old ones in their
            groups, and those of a routing function join the group of its layer; their state is reset. `None` if there
            is none yet: an older one that is not given would keep training parameters that the model no longer has.

    Returns:
        The report; `print` it for a table.

    Raises:
        UsageError: Nothing is selected or none of it can be converted (the message repeats the selector), the model is
            wrapped, scripted or compiled, or calls layers that it has not registered, inference mode is on, or scope,
            routing or optimizer do not fit the model. Or the converted model's output was not the same; it has been
            restored. Each message has the remedy.

    Source:
        CondConv, sections 3 and 4. Deviation: the authors train from random experts with a random router; starting
        from one trained kernel and even routing is ours.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        >>> report = convert_(net, num_experts=4, layers="2")
        >>> [layer.name for layer in report.layers]
        ['2']
    """
    num_experts, routing, experts = resolve_method(method, num_experts, routing, experts, LEARNING)
    scope = _check_arguments(model, routing, scope)
    resolve_experts(experts)
    optimizers = check_optimizers(optimizer, model)
    watched, notes = _watch(model, example_input)
    if watched is None and (layers is None or scope.kind != "layer"):
        needed = "without `layers`" if layers is None else f"with scope={scope.kind!r}"
        raise UsageError(f"`example_input` must be given {needed}, which takes a run, got none: {notes[0]}")
    blocks = Blocks(model, watched, scope.blocks)
    chosen, refused = choose_layers(blocks, layers, skip, classifier, experts, share=scope.kind != "layer")
    old_layers = {candidate.name: candidate.module for candidate in chosen}
    groups, unrouted = group_layers(scope, chosen, blocks)
    conversion = Conversion(num_experts, routing, init, expert_spread, experts, impl, tuple(groups))
    report = exchange_layers_(model, conversion, old_layers, watched, refused, notes + unrouted, optimizers)
    return replace(report, method=method)


def _check_arguments(model: nn.Module, routing: Routing, scope: str | Scope) -> Scope:
    """Check everything that needs no run, and return the scope."""
    reason = refusals.why_not_model(model)
    if reason is not None:
        raise UsageError(reason)
    if not isinstance(scope, (str, Scope)):
        raise UsageError(
            f'`scope` must be "layer", "block", "network" or a Scope, got {shown(scope)}: "layer" routes each layer by '
            "its own input"
        )
    scope = Scope.parse(scope) if isinstance(scope, str) else scope
    scope.check_routing(routing)
    return scope


def _watch(model: nn.Module, example_input: Any) -> tuple[Trace | None, list[str]]:
    """Run the model on the example, or on a guess; a guess that fails is noted, an example that fails is raised."""
    if example_input is not None:
        return trace(model, example_input), []
    try:
        return trace(model), []
    except UsageError as error:
        return None, [f"costs not counted and output not checked: {error}"]
