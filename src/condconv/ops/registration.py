"""`condconv::mixed_conv`, the registered operator behind the implementations that mix kernels.

An operator of our own, rather than a chain of torch functions, for three reasons: mixed kernels are recomputed in
backward instead of kept; examples can be worked off a few at a time; and the compiler sees one node whose batch size
is free, whatever runs inside. It is differentiable twice and counts its own FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from condconv.errors import UsageError, shown
from condconv.ops.autocast import autocast_disabled
from condconv.ops.geometry import Geometry, output_memory_format
from condconv.ops.gradients import empty_grads, gradients
from condconv.ops.implementation import Implementation
from condconv.ops.implementations import MATMUL, TABLE

_GEOMETRY = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, bool transposed, SymInt[] output_padding"
)
_TENSORS = "Tensor x, Tensor weight, Tensor routing_weights, Tensor? bias"
torch.library.define(
    "condconv::mixed_conv",
    f"({_TENSORS}, {_GEOMETRY}, str impl) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "condconv::mixed_conv_backward",
    f"(Tensor grad_output, {_TENSORS}, {_GEOMETRY}, str impl, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "condconv::quantized_conv",
    f"({_TENSORS}, Tensor? weight_scale, {_GEOMETRY}, str impl) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_NUM_TENSORS = 4
_NUM_GEOMETRY = len(Geometry._fields)


def mixed_conv(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry, impl: str
) -> Tensor:
    """Call the registered operator; arguments as in `Implementation.forward`, and its name."""
    output: Tensor = torch.ops.condconv.mixed_conv(x, weight, routing_weights, bias, *geometry, impl)
    return output


def quantized_conv(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    geometry: Geometry,
    impl: str,
) -> Tensor:
    """Call the registered operator for quantized experts, which has no gradient; `impl` reads them."""
    output: Tensor = torch.ops.condconv.quantized_conv(x, weight, routing_weights, bias, weight_scale, *geometry, impl)
    return output


def _unpack(arguments: Sequence[Any]) -> tuple[Geometry, Implementation]:
    stride, padding, dilation, groups, transposed, output_padding, impl = arguments[: _NUM_GEOMETRY + 1]
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups, transposed, tuple(output_padding))
    return geometry, TABLE[impl]


def _empty_output(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    size = geometry.output_size(x.shape[2:], weight.shape[3:])
    shape = (x.shape[0], geometry.out_channels(weight), *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_memory_format(x))


@torch.library.impl("condconv::mixed_conv", "CompositeExplicitAutograd")
def _forward(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    geometry, implementation = _unpack(rest)
    if x.shape[0] == 0:
        return _empty_output(x, weight, geometry)
    with autocast_disabled(x.device):
        return implementation.run(x, weight, routing_weights, bias, None, geometry)


@torch.library.register_fake("condconv::mixed_conv")
def _forward_fake(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return _empty_output(x, weight, _unpack(rest)[0])


@torch.library.impl("condconv::quantized_conv", "CompositeExplicitAutograd")
def _quantized(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    *rest: Any,
) -> Tensor:
    geometry, implementation = _unpack(rest)
    if x.shape[0] == 0:
        return _empty_output(x, weight, geometry)
    with autocast_disabled(x.device):
        return implementation.run(x, weight, routing_weights, bias, weight_scale, geometry)


@torch.library.register_fake("condconv::quantized_conv")
def _quantized_fake(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Any, scale: Any, *rest: Any) -> Tensor:
    return _empty_output(x, weight, _unpack(rest)[0])


@torch.library.impl("condconv::mixed_conv_backward", "CompositeExplicitAutograd")
def _backward(grad_output: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    x, weight, routing_weights, bias = rest[:_NUM_TENSORS]
    if x.shape[0] == 0:
        return tuple(grad.zero_() for grad in _backward_fake(grad_output, *rest))
    geometry, implementation = _unpack(rest[_NUM_TENSORS:])
    backward: Any = implementation.backward  # others never come here
    with autocast_disabled(x.device):
        return tuple(gradients(backward, grad_output, (x, weight, routing_weights, bias), geometry, rest[-1]))


@torch.library.register_fake("condconv::mixed_conv_backward")
def _backward_fake(grad_output: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    tensors, needs = rest[:_NUM_TENSORS], rest[-1]
    grads = empty_grads(tensors[0])
    for index, (tensor, needed) in enumerate(zip(tensors, needs, strict=True)):
        if needed:
            layout = output_memory_format(tensor) if index == 0 else torch.preserve_format
            grads[index] = torch.empty_like(tensor, memory_format=layout)
    return tuple(grads)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    first = 1 if len(inputs) > _NUM_TENSORS + _NUM_GEOMETRY + 1 else 0  # the backward operator has grad_output before
    tensors = first + _NUM_TENSORS
    ctx.save_for_backward(*inputs[:tensors])
    ctx.rest = inputs[tensors:]


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:_NUM_TENSORS])
    if not any(needs):
        return (None,) * (_NUM_TENSORS + len(ctx.rest))
    grads = torch.ops.condconv.mixed_conv_backward(grad_output, *ctx.saved_tensors, *ctx.rest, needs)
    kept = (grad if needed else None for grad, needed in zip(grads, needs, strict=True))
    return (*kept, *(None,) * len(ctx.rest))


def _differentiate_twice(ctx: Any, *grads_of_grads: Tensor) -> tuple[Any, ...]:
    """Differentiate the gradients through the plain form: rare, so short rather than fast."""
    geometry, implementation = _unpack(ctx.rest)
    if torch.is_grad_enabled():
        plain = " or ".join(repr(each.name) for each in TABLE.values() if each.backward is None)
        raise UsageError(
            f"`impl` must be {plain} for third derivatives, got {shown(implementation.name)}: name one of them"
        )
    needs = ctx.rest[-1]
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        grad_output, x, weight, routing_weights, bias = leaves
        output = MATMUL.forward(x, weight, routing_weights, bias, geometry)
        wanted = [leaf for leaf, needed in zip(leaves[1:], needs, strict=True) if needed]
        grads = torch.autograd.grad(output, wanted, grad_output, create_graph=True)  # type: ignore[arg-type]
        given = [grad for grad, needed in zip(grads_of_grads, needs, strict=True) if needed]
        present = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(grads, present, given, allow_unused=True))
    return (*(None if leaf is None else next(found) for leaf in leaves), *(None,) * len(ctx.rest))


torch.library.register_autograd("condconv::mixed_conv", _differentiate, setup_context=_save_inputs)
torch.library.register_autograd("condconv::mixed_conv_backward", _differentiate_twice, setup_context=_save_inputs)


def _madds(x: Sequence[int], weight: Sequence[int], rest: Sequence[Any], bias: Any) -> tuple[int, int]:
    """Return the multiply-adds of the convolutions and of the mixing, from shapes."""
    geometry, _ = _unpack(rest)
    batch, (num_experts, *kernel) = x[0], weight
    pixels = x[2:] if geometry.transposed else geometry.output_size(x[2:], weight[3:])
    mixed = prod(kernel) + (bias[1] if bias is not None else 0)
    return batch * prod(kernel) * prod(pixels), batch * num_experts * mixed


@register_flop_formula(torch.ops.condconv.mixed_conv)
def _flops(x: Any, weight: Any, routing_weights: Any, bias: Any, *rest: Any, **kwargs: Any) -> int:
    """Count two operations per multiply-add: the convolutions and the mixing, biases included."""
    return 2 * sum(_madds(x, weight, rest, bias))


@register_flop_formula(torch.ops.condconv.quantized_conv)
def _quantized_flops(
    x: Any, weight: Any, routing_weights: Any, bias: Any, scale: Any, *rest: Any, **kwargs: Any
) -> int:
    return 2 * sum(_madds(x, weight, rest, bias))


@register_flop_formula(torch.ops.condconv.mixed_conv_backward)
def _backward_flops(
    grad_output: Any, x: Any, weight: Any, routing_weights: Any, bias: Any, *rest: Any, **kwargs: Any
) -> int:
    """Count a convolution for the input, one for the kernels, and three mixings (again, experts, routing)."""
    convolution, mixing = _madds(x, weight, rest, bias)
    needs_x, needs_weight, needs_routing, _ = rest[-1]
    convolutions = needs_x + (needs_weight or needs_routing)
    return 2 * (convolution * convolutions + mixing * (1 + needs_weight + needs_routing))
