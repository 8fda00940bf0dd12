"""Replace layers of a model by conditional ones: all of them, or none if there is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from torch import nn
from torch.optim import Optimizer

from condconv.convert.building import build_layers, frozen_notes
from condconv.convert.optimizers import exchange_parameters_
from condconv.convert.record import Conversion
from condconv.convert.report import ConversionReport, describe_layer
from condconv.convert.surgery import replace
from condconv.convert.verification import check_output, output_tensors, run_changed
from condconv.counting import CostReport, count_trace
from condconv.counting.parameters import count_parameters
from condconv.counting.tracing import Trace, is_on_meta
from condconv.errors import UsageError, few
from condconv.nn import ConditionalLayer, ExternalRouting

NO_VALUES = "no values yet, on the meta device: load the state dict of a converted network"
"""The note on a model of the meta device."""


def exchange_layers_(
    model: nn.Module,
    conversion: Conversion,
    old_layers: Mapping[str, nn.Module],
    watched: Trace | None,
    refused: Mapping[str, str],
    notes: Sequence[str],
    optimizers: Sequence[Optimizer],
) -> ConversionReport:
    """Make layers of a model conditional, in place, and check that its output is the same.

    Args:
        model: The model; unchanged after an error.
        conversion: How layers become conditional, and which share a routing function.
        old_layers: The static layers of the conversion's groups by name.
        watched: A run of the model; `None` to skip the check.
        refused: For the report.
        notes: For the report.
        optimizers: Optimizers that get the new parameters.

    Raises:
        UsageError: The routing does not fit, or the model calls layers that it has not registered.
        UsageError: The converted model's output was not the same.
    """
    before = None if watched is None else count_trace(model, watched)
    params_before = count_parameters(model.parameters())
    notes = [*notes, *frozen_notes(conversion.groups, old_layers)]
    with ExitStack() as undo:
        new_layers = build_layers(model, conversion, old_layers, undo)
        for name, layer in new_layers.items():
            undo.callback(replace(model, old_layers[name], layer))
        after, unchecked = _check(model, watched, old_layers, new_layers, conversion.init)
        undo.pop_all()
    notes += unchecked + exchange_parameters_(optimizers, model, old_layers, new_layers)
    rows = [describe_layer(name, old, new_layers[name], before, after) for name, old in old_layers.items()]
    params_after = count_parameters(model.parameters())
    return ConversionReport(
        tuple(rows), dict(refused), tuple(notes), before, after, params_before, params_after, conversion
    )


def _check(
    model: nn.Module,
    watched: Trace | None,
    old_layers: Mapping[str, nn.Module],
    new_layers: Mapping[str, ConditionalLayer],
    init: str,
) -> tuple[CostReport | None, list[str]]:
    """Run the converted model; return its costs, and notes on what could not be checked."""
    if watched is None:
        return None, []
    if any(isinstance(layer.routing_fn, ExternalRouting) for layer in new_layers.values()):
        return None, ["output not checked: the layers wait for routing_weights from outside"]
    run = run_changed(model, watched.example)
    idle = _check_layers_run(old_layers, new_layers, watched, run)
    notes = [f"not checked, since they do not run on the example in evaluation mode: {few(idle)}"] if idle else []
    if is_on_meta(model):
        notes.append(NO_VALUES)
    elif init == "same_output" and not check_output(model, watched.example, watched.output, run.output):
        notes.append("output not checked: it holds no tensors that could be compared")
    elif init == "same_output" and not any(bool(each.isfinite().any()) for each in output_tensors(watched.output)):
        notes.append("output not checked: the network gave no finite number on the example, before as after")
    return count_trace(model, run), notes


def _check_layers_run(
    old_layers: Mapping[str, nn.Module], new_layers: Mapping[str, nn.Module], before: Trace, after: Trace
) -> list[str]:
    """Check that the model calls the new layers in place of the old ones.

    Args:
        old_layers: By name. They share the hooks of the new ones, so the trace has seen them if they were called.
        new_layers: By name.
        before: A run with the old layers.
        after: A run with the new layers.

    Returns:
        The names of those that have not run, nor had run before.

    Raises:
        UsageError: The model still calls an old layer, or no longer calls one.
    """
    idle = [name for name, layer in new_layers.items() if not after.runs(layer)]
    lost = [name for name, old in old_layers.items() if after.runs(old) or (name in idle and before.runs(old))]
    if lost:
        raise UsageError(
            f"`model` must call its layers where it has registered them, got {few(map(repr, lost))}, of which it "
            "calls the old one (kept in a list, a closure or __dict__) or none (it looks for a class); it has been "
            "restored: use a torch.nn.ModuleList and call them from there, or leave them out by `skip`"
        )
    return idle
