"""A copy of a network, rewritten for a runtime: norms folded, each conditional layer in its form."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from condconv.convert.fold import fold_those_that_can_
from condconv.convert.surgery import replace
from condconv.export.arguments import check_batch, check_example, check_model
from condconv.export.choose import FORMS, ROUTED_IN_4D, Choice, choose
from condconv.export.formats import format_named
from condconv.export.forms import Centred
from condconv.export.routers import use_4d_routers_
from condconv.nn import ConditionalLayer, CondLinear, DeltaExperts
from condconv.nn.block_routing import routing_functions
from condconv.nn.conv_transpose import sizes_second


class Formed(nn.Module):
    """A conditional layer in one of its forms, with the routing function it had."""

    def __init__(self, layer: Any, form: nn.Module) -> None:
        super().__init__()
        self.form = form
        self.routing_fn = layer.routing_fn
        self.num_experts = layer.num_experts
        self.is_linear = isinstance(layer, CondLinear)

    def forward(
        self,
        x: Tensor,
        routing_weights: Tensor | Sequence[int] | None = None,
        output_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute the same as the layer, with its arguments; sizes are for transposed convolutions."""
        routing_weights, output_size = sizes_second(routing_weights, output_size)
        if routing_weights is None:
            rows_last = x.flatten(1, -2).mT if self.is_linear and x.dim() > 2 else x
            routing_weights = self.routing_fn(rows_last)
        options = {} if output_size is None else {"output_size": output_size}
        y: Tensor = self.form(x, routing_weights, **options)
        return y


def rewrite(
    model: nn.Module,
    format: str,
    example_input: Tensor,
    *,
    batch: int | None = None,
    forms: Mapping[str, str] | None = None,
) -> tuple[nn.Module, tuple[Choice, ...]]:
    """Return a copy of a network that computes the same with operators that suit a runtime.

    The copy is on the CPU, in evaluation mode and without gradients; the network does not change. Batch norms after
    conditional layers are folded into their experts, and each conditional layer is replaced by a form of it. A norm
    that cannot be folded stays where it is, and the choice of its layer has the reason.

    Args:
        model: A network with or without conditional layers.
        format: A key of `condconv.export.FORMATS`; its table has the form of each kind of layer.
        example_input: `[B, C, H, W]`, a batch for the network, on the CPU.
        batch: The batch size of the copy; `None` for any.
        forms: Forms that replace the table's, by pattern of layers' names.

    Returns:
        The copy, and the form of each layer in the order of the model's modules.

    Raises:
        UsageError: `forms` does not fit the network, or another argument is wrong.
        RuntimeError: The copy with folded norms does not compute the same as the network.

    Example:
        >>> net = torch.nn.Sequential(condconv.CondConv2d(3, 8, 3, num_experts=4), torch.nn.BatchNorm2d(8))
        >>> copy, choices = rewrite(net, "onnx", torch.randn(2, 3, 8, 8))
        >>> choices[0].form, copy[1]
        ('scan', Identity())
    """
    check_model(model)
    format_named(format)
    check_example(example_input)
    check_batch(batch)
    copied = copy_of(model)
    return rewrite_(copied, format, example_input, choose(copied, format, batch, forms))


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy for `rewrite_`, on the CPU and in evaluation mode; a single layer gets a module around it."""
    copied = copy.deepcopy(model).cpu().eval()
    return nn.Sequential(copied) if isinstance(copied, ConditionalLayer) else copied


@torch.no_grad()
def rewrite_(
    model: nn.Module, format: str, example_input: Tensor, choices: Mapping[str, Choice]
) -> tuple[nn.Module, tuple[Choice, ...]]:
    """Rewrite a network in place; arguments and results as those of `rewrite`.

    Args:
        model: As `copy_of` returned it.
        format: As in `rewrite`.
        example_input: As in `rewrite`.
        choices: The form of each layer, from `choose`.
    """
    # Folded in fp64, and rounded once: with random weights a network can make much of the rounding of a fold.
    model.double().requires_grad_(False)
    _, unfolded = fold_those_that_can_(model, example_input.double())
    model.float()
    made = {
        name: dataclasses.replace(choice, unfolded=unfolded[name]) if name in unfolded else choice
        for name, choice in choices.items()
    }
    routings = routing_functions(model)
    for name, choice in made.items():
        layer: Any = model.get_submodule(name)
        if choice.form == "static":
            constant: Any = routings[layer.routing_fn]
            replace(model, layer, _Static(layer.to_static(constant.weights)))
        else:
            replace(model, layer, Formed(layer, _form(layer, FORMS[choice.form])))
    if format in ROUTED_IN_4D:
        use_4d_routers_(model)
    return model.eval().requires_grad_(False), tuple(made.values())


def _form(layer: Any, make: Callable[[Any], nn.Module]) -> nn.Module:
    return Centred(layer, make) if isinstance(layer.experts, DeltaExperts) else make(layer)


class _Static(nn.Module):
    """A static layer that can be called as a conditional one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, routing_weights: Tensor | None = None) -> Tensor:
        return self.layer(x)
