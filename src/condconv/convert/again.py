"""Repeat a conversion on another copy of the network, to load a converted state dict into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condconv.convert.exchange import exchange_layers_
from condconv.convert.optimizers import check_optimizers
from condconv.convert.record import Conversion, read_conversion
from condconv.convert.refusals import why_not_layer, why_not_model, why_not_shared
from condconv.convert.report import ConversionReport
from condconv.counting.tracing import trace
from condconv.errors import UsageError, shown
from condconv.nn.experts import ExpertsOption
from condconv.nn.factory import Routing


def convert_like_(
    model: nn.Module,
    report: ConversionReport | Mapping[str, Any] | str | Path,
    *,
    routing: Routing | None = None,
    experts: ExpertsOption | None = None,
    example_input: Any = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
) -> ConversionReport:
    """Convert a network as another copy of it was converted, in place, so that it has the same state dict.

    For libraries that rebuild a static network: convert what they built, then load the converted state dict. The model
    is not run, so it may be on the meta device, or too large to run. All or nothing, as `convert_`.

    Args:
        model: A network with the same names for the layers that were converted.
        report: The result of `convert_`; its `to_dict()`, as part of a configuration; or the file that its `save`
            wrote. If `convert_` was called several times, call this as often, in the same order.
        routing: If the report's was a class, a function or a module, the same again; `None` for the report's.
        experts: The same for experts.
        example_input: A tensor or a tuple of arguments, to compare the outputs before and after as `convert_` does;
            `None` to not run the model.
        optimizer: As in `convert_`.

    Returns:
        The report of this conversion.

    Raises:
        UsageError: The report cannot be read, or the model has other layers than it names.
        UsageError: The converted model's output was not the same; it has been restored.

    Example:
        >>> make = lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        >>> net = make()
        >>> report = condconv.convert_(net, num_experts=4, layers="2")
        >>> again = make()
        >>> convert_like_(again, report.to_dict()).layers[0].new
        'CondConv2d x4'
        >>> again.load_state_dict(net.state_dict())
        <All keys matched successfully>
    """
    if isinstance(report, (str, Path)):
        data = read_conversion(report)
    else:
        data = report.to_dict() if isinstance(report, ConversionReport) else report
    conversion = Conversion.from_dict(data, routing, experts)
    if (reason := why_not_model(model)) is not None:
        raise UsageError(reason)
    old_layers = _find_layers(model, conversion)
    watched = None if example_input is None else trace(model, example_input)
    return exchange_layers_(model, conversion, old_layers, watched, {}, [], check_optimizers(optimizer, model))


def _find_layers(model: nn.Module, conversion: Conversion) -> dict[str, nn.Module]:
    """Return the static layers that a conversion names.

    Raises:
        UsageError: A layer is missing, or cannot be converted.
    """
    modules = dict(model.named_modules())
    names = [name for group in conversion.groups for name in group.layers]
    around = [name for group in conversion.groups if group.leader is not None for name in (group.leader, group.last)]
    for name in (*names, *around):
        if name not in modules:
            raise UsageError(
                f"`model` must have the modules of the report, got none called {shown(name)}: build it as it was then"
            )
    shared = why_not_shared(model)
    layers = {name: modules[name] for name in names}
    for name, layer in layers.items():
        reason = why_not_layer(model, name, layer, conversion.experts) or shared.get(id(layer))
        if reason is not None:
            raise UsageError(f"`model` must have static layers where the report has some, got {shown(name)}: {reason}")
    return layers
