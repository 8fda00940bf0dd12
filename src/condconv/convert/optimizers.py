"""Give the parameters of converted layers to an existing optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import LBFGS, Optimizer

from condconv.errors import UsageError, shown
from condconv.nn import ConditionalLayer
from condconv.nn.block_routing import routing_functions


def check_optimizers(given: Optimizer | Sequence[Optimizer] | None, model: nn.Module) -> tuple[Optimizer, ...]:
    """Return the optimizers of a model.

    Args:
        given: One optimizer, several, or `None`.
        model: The model before its conversion.

    Raises:
        UsageError: One is not an optimizer, has state that does not belong to single parameters, or has none of the
            model's parameters.
    """
    optimizers = () if given is None else (given,) if isinstance(given, Optimizer) else given
    if not isinstance(optimizers, (tuple, list)) or not all(isinstance(each, Optimizer) for each in optimizers):
        raise UsageError(
            f"`optimizer` must be a torch.optim.Optimizer or several, got {shown(given)}: give the one that holds the "
            "model's parameters, or build it after the conversion"
        )
    for each in optimizers:
        if isinstance(each, LBFGS):
            raise UsageError(
                "`optimizer` must keep its state parameter by parameter, got an LBFGS, whose history is of all of them "
                "together: build it after the conversion"
            )
    own = {id(parameter) for parameter in model.parameters()}
    for each in optimizers:
        if not any(id(parameter) in own for group in each.param_groups for parameter in group["params"]):
            raise UsageError(
                f"`optimizer` must hold parameters of the model, got a {type(each).__name__} without any: leave it "
                "out, or build it from model.parameters()"
            )
    return tuple(optimizers)


def exchange_parameters_(
    optimizers: Sequence[Optimizer],
    model: nn.Module,
    old_layers: Mapping[str, nn.Module],
    new_layers: Mapping[str, ConditionalLayer],
) -> list[str]:
    """Put the parameters of new layers where those of the old ones are, and those of routings with their layers'.

    The state of an old parameter is dropped, since it has another shape; all other state stays.

    Args:
        optimizers: Changed in place, groups too, so that schedules and wrappers that hold these see the change.
        model: The converted model.
        old_layers: The static layers by name.
        new_layers: The conditional layers by name.

    Returns:
        A note for the report, if there are optimizers.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {id(each) for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    replaced = _replaced(model, old_layers, new_layers) if optimizers else {}
    exchanged = added = 0
    for optimizer, group in ((each, group) for each in optimizers for group in each.param_groups):
        joining: list[nn.Parameter] = []
        for index, old in enumerate(group["params"]):
            if id(old) not in replaced:
                continue
            new, *more = replaced[id(old)]
            group["params"][index] = new
            if "param_names" in group:
                group["param_names"][index] = names[id(new)]
            optimizer.state.pop(old, None)
            exchanged += 1
            joining += [parameter for parameter in more if id(parameter) not in held]
            held.update(map(id, joining))
        group["params"] += joining
        if "param_names" in group:
            group["param_names"] += [names[id(parameter)] for parameter in joining]
        added += len(joining)
    return [f"optimizer: {exchanged} parameters exchanged, {added} of routings added"] if optimizers else []


def _replaced(
    model: nn.Module, old_layers: Mapping[str, nn.Module], new_layers: Mapping[str, ConditionalLayer]
) -> dict[int, list[nn.Parameter]]:
    """Return by `id` of an old parameter the new ones: for a kernel those of the experts and of their routing."""
    functions = routing_functions(model)
    replaced = {}
    for name, old in old_layers.items():
        new = new_layers[name]
        replaced[id(old.weight)] = [*new.experts.kernel_parameters(), *functions[new.routing_fn].parameters()]
        if new.experts.bias is not None:
            replaced[id(old.bias)] = [new.experts.bias]
    return replaced
