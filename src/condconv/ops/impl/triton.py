"""Triton kernels for the GPU: kernels are mixed where they are used, or a few examples' at a time.

Kernels of examples and their gradients are kept by none of them: the gradients are spread over the experts' as they are
computed. The modules that define kernels are imported where they run: they import triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, output_memory_format
from condconv.ops.implementation import Implementation
from condconv.ops.mixing import add_bias_, mix_kernels
from condconv.ops.problem import Problem, why_not_two_dimensions
from condconv.ops.triton import limits, tiles
from condconv.ops.triton.passes import Pass, forward_pass, gradient_passes


class _Experts(NamedTuple):
    """Experts as the kernels read them in order: taps outside of the channels that a tile runs over."""

    stored: Tensor
    back: tuple[int, ...]

    @property
    def view(self) -> Tensor:
        """As `[E, O, C/G, KH, KW]`."""
        return self.stored.permute(self.back)

    def mix(self, routing_weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Return one kernel per example, `[B, O, C/G, KH, KW]`, stored as the experts are."""
        return mix_kernels(self.stored, routing_weights, dtype).permute(self.back)


def forward(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve example b of x `[B, C, H, W]` with `sum_e routing_weights[b, e] * weight[e]`.

    Args:
        x: fp32, bf16 or fp16, not empty; contiguous or channels_last, else it is copied.
        weight: `[E, O, C/G, KH, KW]`, fp32, bf16 or fp16; mixed in fp32, and rounded to the dtype of x.
        routing_weights: `[B, E]`, any dtype; used in fp32.
        bias: `[E, O]`, or `None`.
        geometry: Not transposed.

    Returns:
        `[B, O, H', W']` in the dtype and layout of x. Sums are fp32.
    """
    layout = output_memory_format(x)
    shape = (x.shape[0], weight.shape[1], *geometry.output_size(x.shape[2:], weight.shape[3:]))
    output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    source = x.contiguous(memory_format=layout)

    def passes(kernels: Tensor, part: slice) -> list[Pass]:
        return [forward_pass(source[part], kernels, output[part], geometry)]

    with _device(x):
        _convolve(passes, weight, routing_weights, geometry, output)
    return output if bias is None else add_bias_(output, bias, routing_weights)


def backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    geometry: Geometry,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, of the experts and of the routing weights, `None` if not needed.

    Shapes as in `forward`; the latter two are fp32, and the same at every call.
    """
    needs_x, needs_weight, needs_routing = needs
    layout = output_memory_format(x)
    grad = grad_output.contiguous(memory_format=layout)
    grad_x = grad_weight = grad_routing = None
    with _device(x):
        if needs_x:
            grad_x = _input_gradient(grad, x, weight, routing_weights, geometry)
        if needs_weight or needs_routing:
            source = x.contiguous(memory_format=layout)
            grad_weight, grad_routing = _weight_gradient(grad, source, weight, routing_weights, geometry)
    return grad_x, grad_weight if needs_weight else None, grad_routing


def _input_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, routing_weights: Tensor, geometry: Geometry
) -> Tensor:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_memory_format(x))

    def passes(kernels: Tensor, part: slice) -> list[Pass]:
        return gradient_passes(grad_output[part], kernels, grad_x[part], geometry)

    _convolve(passes, weight, routing_weights, geometry, grad_output)
    return grad_x


def _weight_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, routing_weights: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    from condconv.ops.triton import dense_gradient, depthwise_gradient

    kernels = depthwise_gradient if geometry.is_depthwise(weight) else dense_gradient
    each = forward_pass(x, _stored(weight, geometry).view, grad_output, geometry)
    grad_experts, grad_routing = kernels.weight_gradient(each, routing_weights.float().contiguous())
    return grad_experts.flatten(1, 2), grad_routing


def _convolve(
    passes: Callable[[Tensor, slice], list[Pass]],
    weight: Tensor,
    routing_weights: Tensor,
    geometry: Geometry,
    output: Tensor,
) -> None:
    """Run the passes for the experts, or where many pixels share a kernel for mixed kernels, some examples at a time.

    Args:
        passes: Of kernels and a part of the batch.
        weight: The experts.
        routing_weights: `[B, E]`.
        geometry: Of the convolution.
        output: The convolution's, or its gradient.
    """
    from condconv.ops.triton import dense, depthwise

    batch, kernels = len(output), depthwise if geometry.is_depthwise(weight) else dense
    experts, weights = _stored(weight, geometry), routing_weights.float().contiguous()
    if tiles.mixes_inside(prod(output.shape[2:]), batch):
        for each in passes(experts.view, slice(0, batch)):
            kernels.convolve(each, weights)
        return
    count = tiles.mixed_examples(weight[0].numel() * output.element_size())
    for first in range(0, batch, count):
        part = slice(first, first + count)
        for each in passes(experts.mix(weights[part], output.dtype), part):
            kernels.convolve(each, None)


def _stored(weight: Tensor, geometry: Geometry) -> _Experts:
    order = (0, 3, 4, 1, 2) if geometry.is_depthwise(weight) else (0, 1, 3, 4, 2)
    back = tuple(order.index(dim) for dim in range(len(order)))
    return _Experts(weight.permute(order).contiguous(), back)


def _device(x: Tensor) -> AbstractContextManager[Any]:
    """Make the device of x the current one: Triton launches there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def why_not(problem: Problem) -> str | None:
    """Return why the kernels for the GPU cannot run, or `None`."""
    if (reason := limits.why_not(problem.device)) is not None:
        return reason
    computes = "in fp32, bf16 and fp16"
    if (reason := why_not_two_dimensions(problem, computes, limits.DTYPES, limits.MOST_TAPS)) is not None:
        return reason
    if problem.num_experts > limits.MOST_EXPERTS:
        return f"it mixes at most {limits.MOST_EXPERTS} experts, got {problem.num_experts}"
    if problem.exporting or problem.transforming:
        return "an exported graph and torch.func transforms need plain torch functions"
    largest = max(problem.kernel_numel, problem.input_numel, problem.output_numel)
    if largest > limits.MOST_NUMBERS:
        return f"an example or an expert has at most {limits.MOST_NUMBERS} numbers, got {largest}"
    return None


TRITON = Implementation("triton", why_not, forward, backward, reads_memory=True)
