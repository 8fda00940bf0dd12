"""`convert_`: give a network's layers experts, in place, without changing what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from condconv.convert import refusals, select
from condconv.convert.blocks import Blocks, find_candidates
from condconv.convert.building import build_layers
from condconv.convert.report import ConversionReport, describe_layer
from condconv.convert.scope import Scope, group_layers
from condconv.convert.surgery import replace
from condconv.convert.verification import check_same_output
from condconv.counting import count, count_trace
from condconv.errors import few
from condconv.nn import ConditionalLayer, ExternalRouting
from condconv.nn.factory import Routing
from condconv.tracing import Trace, default_example, trace


def convert_(
    model: nn.Module,
    num_experts: int = 8,
    *,
    where: select.Selector | None = None,
    routing: Routing = "sigmoid",
    scope: str | Scope = "layer",
    classifier: bool = False,
    example_input: Any = None,
    init: str = "preserve",
    noise: float = 0.5,
    impl: str = "auto",
) -> ConversionReport:
    """Replace convolutions of a network by conditional ones, in place; its output stays what it was.

    Experts start as copies of the trained kernel, scaled so that the initial routing gives it back, plus
    differences that cancel; batch norm statistics therefore stay valid. The conversion is all or nothing: on an error
    the model is as before. With an example input the equality is checked before returning.

    Args:
        model: Any module; changed in place.
        num_experts: E.
        where: Which layers, from `condconv.select`; `None` for all convolutions that run on the example and give
            more than one pixel (so neither squeeze-and-excitation nor heads that serve training alone).
        routing: A name, also with options as in `"softmax(temperature=30)"`, a factory called with
            `(in_channels, num_experts)`, or (scope `"single"` only) a module.
        scope: `"layer"`, `"block"`, `"block(every=2)"`, `"single"` or a `Scope`.
        classifier: Also convert the last linear layer to run, whatever `where` says; it routes by its own input
            unless the scope is `"single"`.
        example_input: A tensor or a tuple of arguments the model takes; `None` to guess an image of the usual size.
            Tells the order of the layers, the channels of blocks and the costs.
        init: `"preserve"`, or `"independent"` to train from scratch as the paper does: experts drawn one by one, the
            routing at random, so that the output is a new network's; each expert's bias is the old layer's.
        noise: Difference between experts, relative to the standard deviation of the kernel.
        impl: As in `condconv.ops.cond_conv2d`.

    Returns:
        The report; `print` it for a table.

    Raises:
        TypeError: `model` is not a module, or the routing cannot start constant.
        ValueError: Nothing is selected or nothing of it can be converted (the message repeats the selector), the
            model is wrapped, scripted or compiled, an optimizer already holds its parameters, inference mode is on, or
            scope and routing do not fit the model. Each message has the remedy.
        RuntimeError: The converted model did not compute what it did before; it has been restored.

    Source:
        CondConv, sections 3 and 4. Deviation: the authors train from random experts with a random router; starting
        from one trained kernel and an even routing is ours.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        >>> report = convert_(net, num_experts=4, where=condconv.select.name("2"))
        >>> [layer.name for layer in report.layers]
        ['2']
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("convert_ must be called outside torch.inference_mode: its experts could never be trained")
    reason = refusals.why_not_model(model)
    if reason is not None:
        raise (ValueError if isinstance(model, nn.Module) else TypeError)(reason)
    if where is not None and not isinstance(where, select.Selector):
        raise TypeError(f"where must be a selector, such as condconv.select.name('blocks.*'), got {where!r}")
    if not isinstance(scope, (str, Scope)):
        raise TypeError(f'scope must be "layer", "block", "single" or a Scope, got {scope!r}')
    scope = Scope.parse(scope) if isinstance(scope, str) else scope
    scope.check_routing(routing)
    example, watched, notes = _watch(model, example_input)
    if where is None and watched is None:
        raise ValueError(
            "example_input must be given where `where` is not: the default leaves out layers of one pixel, which only "
            f"a run shows; {notes[0]}"
        )
    blocks = Blocks(model, watched, scope.is_block)
    chosen, refused = _choose(blocks, where, scope, classifier)
    _check_optimizers(chosen)
    before = None if watched is None else count_trace(model, watched)
    params_before = sum(parameter.numel() for parameter in model.parameters())
    old_layers = {candidate.name: candidate.module for candidate in chosen}
    if watched is None and scope.kind != "layer":
        raise ValueError(f"example_input must be given for scope={scope.kind!r}: {notes[0]}")
    groups, unrouted = group_layers(scope, chosen, blocks)
    notes += unrouted
    with ExitStack() as undo:
        new_layers = build_layers(
            model, groups, old_layers, watched, num_experts, routing, undo, init=init, noise=noise, impl=impl
        )
        for name, layer in new_layers.items():
            undo.callback(replace(model, old_layers[name], layer))
        after = None
        if any(isinstance(layer.routing_fn, ExternalRouting) for layer in new_layers.values()):
            notes.append("output not checked: the layers wait for routing_weights from outside")
        elif watched is not None:
            if init == "preserve" and not check_same_output(model, example, watched.output):
                notes.append("output not checked: it holds no tensors that could be compared")
            after = count(model, example)
        undo.pop_all()
    rows = [describe_layer(name, old, new_layers[name], before, after) for name, old in old_layers.items()]
    params_after = sum(parameter.numel() for parameter in model.parameters())
    return ConversionReport(tuple(rows), refused, tuple(notes), before, after, params_before, params_after)


def _watch(model: nn.Module, example_input: Any) -> tuple[Any, Trace | None, list[str]]:
    """Run the model on the example, or on a guess; a guess that fails is noted, an example that fails is raised."""
    if example_input is not None:
        return example_input, trace(model, example_input), []
    try:
        watched = trace(model)
    except ValueError as error:
        return None, None, [f"costs not counted and output not checked: {error}"]
    return default_example(model), watched, []


def _choose(
    blocks: Blocks, where: select.Selector | None, scope: Scope, classifier: bool
) -> tuple[list[select.Candidate], dict[str, str]]:
    """Return the layers to convert, and the selected ones that cannot be with the reasons."""
    model, watched = blocks.model, blocks.watched
    selector = where or select.convs() & ~select.single_pixel() & select.running()
    candidates = find_candidates(blocks)
    linears = [candidate for candidate in candidates if isinstance(candidate.module, nn.Linear)]
    asked = [linear for linear in linears if watched is None or linear.output_pixels is not None][-1:]
    asked = asked if classifier else []
    if classifier and not asked:
        raise ValueError("classifier must be False for a model without a linear layer, got True")
    selected = [
        candidate
        for candidate in candidates
        if candidate in asked
        or (selector(candidate) and (candidate not in linears or isinstance(candidate.module, selector.types)))
    ]
    if not selected:
        if where is None and any(isinstance(each, ConditionalLayer) for each in model.modules()):
            raise ValueError("model must have layers left to convert: its convolutions are conditional already")
        names = few((candidate.name for candidate in candidates), most=8)
        raise ValueError(
            f"where must select a layer, {selector!r} matched none of {len(candidates)}"
            + (f" ({names})" if candidates else ": the model has none")
        )
    shared = refusals.why_not_shared(model)
    several = {} if scope.kind == "layer" else refusals.in_several_blocks(blocks)
    refused = {}
    for candidate in selected:
        key = id(candidate.module)
        reason = refusals.why_not_layer(model, candidate.name, candidate.module) or shared.get(key) or several.get(key)
        if reason is not None:
            refused[candidate.name] = reason
    chosen = [candidate for candidate in selected if candidate.name not in refused]
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:4])
        raise ValueError(f"where must select a layer that can be converted, {selector!r} selected only {reasons}")
    return chosen, refused


def _check_optimizers(chosen: Sequence[select.Candidate]) -> None:
    parameters = [parameter for candidate in chosen for parameter in candidate.module.parameters(recurse=False)]
    optimizer = refusals.stale_optimizer(parameters)
    if optimizer is not None:
        raise ValueError(
            f"model must be converted before its optimizer is built: a {type(optimizer).__name__} holds parameters "
            "that would be replaced; delete it, convert, then build it"
        )
