"""Make conditional layers ordinary ones: each gets the kernel that constant routing weights mix."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from condconv.convert.surgery import replace
from condconv.convert.verification import check_same_output
from condconv.counting.tracing import Trace, trace
from condconv.errors import UsageError, check_type, few, shown
from condconv.nn import ConditionalLayer, RoutingSlot
from condconv.nn.block_routing import ClearSlot, FillSlot
from condconv.nn.conditional import conditional_layers
from condconv.nn.hooks import why_not_hooks


def make_static_(model: nn.Module, routing_weights: Mapping[str, Tensor | None], *, example_input: Any = None) -> None:
    """Replace conditional layers by ordinary ones with the kernel that constant routing weights mix, in place.

    A layer's output is the same as with these weights, to rounding, without experts, routing or mixing. Routing
    functions of blocks are removed if no layer and no other routing function uses them any more.

    Args:
        model: Network with conditional layers. Nothing is changed if an error is raised.
        routing_weights: Weights `[E]` by the layer's name, floats on any device, for example their mean over a data
            set; None for `1 / E` each, if other weights are loaded into the layer later.
        example_input: A tensor or a tuple of arguments for the model, on which the new model is compared with the old
            one under these weights; `None` to not run it.

    Raises:
        UsageError: There is no conditional layer of that name, it has backward or state-dict hooks, or weights are not
            finite floats `[E]`.
        ValueError: Torch has no such ordinary layer.
        UsageError: The new model's output is not that of constant weights, for example since something uses the experts
            of a layer directly; it has been restored.

    Example:
        >>> network = torch.nn.Sequential(condconv.CondConv2d(3, 8, 3, num_experts=4))
        >>> make_static_(network, {"0": torch.tensor([0.1, 0.2, 0.3, 0.4])})
        >>> network[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
    check_type("routing_weights", routing_weights, Mapping, "map layers' names to weights", "give a dictionary")
    layers = conditional_layers(model)
    static: dict[str, nn.Module] = {}
    constant: dict[ConditionalLayer, Tensor] = {}
    for name, weights in routing_weights.items():
        if name not in layers:
            raise UsageError(
                f"`routing_weights` must be for conditional layers of the network, got {shown(name)}: there are "
                f"{few(layers, most=8) or 'none'}"
            )
        layer: Any = layers[name]
        if (reason := why_not_hooks(layer) or why_not_hooks(layer.experts)) is not None:
            raise UsageError(f"`routing_weights` must be for layers that can be exchanged, got {name!r}: {reason}")
        experts = layer.experts
        constant[layer] = experts.even_weights() if weights is None else _checked(name, weights, experts.num_weights)
        static[name] = layer.to_static(constant[layer])
    expected = None if example_input is None else _run_with(model, constant, example_input)
    with ExitStack() as undo:
        for name, ordinary in static.items():
            undo.callback(replace(model, layers[name], ordinary))
        if expected is not None:
            check_same_output(model, example_input, expected.output)
        undo.pop_all()
    while _remove_idle_routing_(model):  # one that only handed its weights on may be idle next
        pass


class _Given(nn.Module):
    """The same routing weights for every input."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(x.shape[0], -1)


def _run_with(model: nn.Module, constant: Mapping[ConditionalLayer, Tensor], example_input: Any) -> Trace:
    """Run a model with constant routing weights `[E]` for the layers that are to become static."""
    routings = {layer: layer.routing_fn for layer in constant}
    try:
        for layer, weights in constant.items():
            layer.routing_fn = _Given(weights)
        return trace(model, example_input)
    finally:
        for layer, routing_fn in routings.items():
            layer.routing_fn = routing_fn


def _checked(name: str, weights: Tensor, num_weights: int) -> Tensor:
    """Return the weights of a layer.

    Raises:
        UsageError: They are not finite floats `[E]` with values.
    """
    rule = f"`routing_weights` must have one finite float for each of the {num_weights} experts of {name!r}, got "
    if not isinstance(weights, Tensor):
        raise UsageError(f"{rule}{type(weights).__name__}: give a tensor, such as torch.tensor([...])")
    if tuple(weights.shape) != (num_weights,):
        raise UsageError(f"{rule}shape {tuple(weights.shape)}: give the mean over the examples, weights.mean(0)")
    if not weights.is_floating_point():
        raise UsageError(f"{rule}{weights.dtype}: give weights.float()")
    if weights.is_meta:
        raise UsageError(f"{rule}a tensor on the meta device, which has no values: record the weights first")
    if not bool(weights.isfinite().all()):
        raise UsageError(f"{rule}{weights.tolist()}: the network or the mean is not valid, record the weights again")
    return weights


def _remove_idle_routing_(model: nn.Module) -> bool:
    """Remove the routing functions of blocks whose weights are not used; return whether there were any."""
    fillers = [
        (block, key, hook)
        for block in model.modules()
        for key, hook in block._forward_pre_hooks.items()
        if isinstance(hook, FillSlot)
    ]
    held = (layer.routing_fn for layer in model.modules() if isinstance(layer, ConditionalLayer))
    used: set[nn.Module] = {each.filled() if isinstance(each, RoutingSlot) else each for each in held}
    used |= {hook.previous.filled() for _, _, hook in fillers if hook.previous is not None}
    idle = [filler for filler in fillers if filler[2].slot not in used]
    for block, key, hook in idle:
        block._forward_pre_hooks.pop(key)
        block._forward_pre_hooks_with_kwargs.pop(key, None)
        del block.routing_fn
        if hook.previous is not None:  # this block took the weights over, and let go of them
            block.register_forward_hook(ClearSlot(hook.previous), always_call=True)
    _remove_clearing_(model, {hook.slot for _, _, hook in idle})
    return bool(idle)


def _remove_clearing_(model: nn.Module, slots: set[nn.Module]) -> None:
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, ClearSlot) and hook.slot in slots:
                module._forward_hooks.pop(key)
                module._forward_hooks_always_called.pop(key, None)
