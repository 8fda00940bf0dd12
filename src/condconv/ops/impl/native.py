"""Compiled kernels for the CPU: kernels are mixed where they are used, and never reach memory.

Neither do the gradients of an example's kernel: they are spread over the experts' as they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, Output, laid_out_as
from condconv.ops.implementation import Implementation, Runner
from condconv.ops.mixing import bind_bias
from condconv.ops.native import library
from condconv.ops.problem import Problem, why_not_two_dimensions


def forward(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Convolve example b of x `[B, C, H, W]` with `sum_e routing_weights[b, e] * weight[e]`.

    Args:
        x: fp32, bfloat16 or fp16 on the CPU, not empty. Computed in fp32 with channels innermost: a narrower one is
            widened, a contiguous one turned around, and the output back.
        weight: `[E, O, C/G, KH, KW]`; fp32 or fp16, or bfloat16 or int8, which are widened as they are mixed.
        routing_weights: `[B, E]`, any dtype.
        bias: `[E, O]`, or `None`.
        geometry: Not transposed.
        weight_scale: `[E, O]`, fp32, to be multiplied with the experts, or `None`.

    Returns:
        `[B, O, H', W']` in the dtype and the layout of x. Sums are fp32, rounded once.
    """
    run = prepare(x, weight, routing_weights, bias, weight_scale, geometry)
    return run(x, weight, routing_weights, bias, weight_scale)


def prepare(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    geometry: Geometry,
) -> Runner:
    """Return what computes calls that look like this one, without gradients; arguments as in `forward`."""
    experts, weights = _readable(weight), _weights(routing_weights, weight_scale)
    convolution = library.convolution(
        x.shape, weight.shape, experts.dtype, not experts.is_contiguous(), weights.stride(), geometry
    )
    output = Output.of(x, weight, geometry)
    shift = bind_bias(bias, routing_weights, output.shape, x.dtype)
    read, weigh = experts is weight, weights is routing_weights  # as they are
    turn = x.dtype != torch.float32 or x.is_contiguous() or _channels_inside(x) is not x

    def run(
        x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None
    ) -> Tensor:
        experts = weight if read else _readable(weight)
        weights = routing_weights if weigh else _weights(routing_weights, weight_scale)
        y = convolution.forward(_channels_inside(x) if turn else x, experts, weights)
        y = output.form(y.to(x.dtype)) if turn else y
        return y if bias is None else shift(y, bias, routing_weights)

    return run


def backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    geometry: Geometry,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, of the experts and of the routing weights, `None` if not needed.

    Shapes as in `forward`; that of x in its dtype, the others in fp32.
    """
    needs_x, needs_weight, needs_routing = needs
    source, grad = _channels_inside(x), _channels_inside(grad_output)
    depthwise = geometry.is_depthwise(weight)
    # The taps outside: then a tap's channels lie side by side, as those of x do.
    wide = weight.float()
    experts = wide.contiguous() if depthwise else _inside(wide).contiguous().permute(0, 1, 4, 2, 3)
    weights = routing_weights.float().contiguous()
    outside = not experts.is_contiguous()
    convolution = library.convolution(x.shape, weight.shape, experts.dtype, outside, weights.stride(), geometry)
    read = (source, experts, weights, grad)
    grad_x = grad_weight = grad_routing = None
    if needs_x:
        grad_x = torch.empty_like(source)
        convolution.input_gradient(*read, grad_x)
        grad_x = laid_out_as(grad_x.to(x.dtype), x)
    if needs_weight or needs_routing:
        found = torch.empty_like(experts)
        grad_routing = convolution.weight_gradient(*read, found)
        grad_weight = found if needs_weight else None
    return grad_x, grad_weight, grad_routing


def _inside(weight: Tensor) -> Tensor:
    return weight.permute(0, 1, 3, 4, 2)


def _readable(weight: Tensor) -> Tensor:
    """Return experts in a dtype that the kernels widen, dense, each contiguous or with channels innermost."""
    experts = weight.float() if weight.dtype == torch.float16 else weight
    return experts if experts.is_contiguous() or _inside(experts).is_contiguous() else experts.contiguous()


def _weights(routing_weights: Tensor, weight_scale: Tensor | None) -> Tensor:
    weights = routing_weights.float()
    return weights if weight_scale is None else weights[:, :, None] * weight_scale


def _channels_inside(x: Tensor) -> Tensor:
    return x.float().contiguous(memory_format=torch.channels_last)


def why_not(problem: Problem) -> str | None:
    """Return why the compiled kernels cannot run, or `None`."""
    if problem.device != "cpu":
        return f"its kernels are for the CPU, x is on {problem.device}"
    computes = "in fp32 for fp32, bf16 and fp16"
    if (reason := why_not_two_dimensions(problem, computes, library.DTYPES, library.MOST_TAPS)) is not None:
        return reason
    if problem.exporting or problem.transforming:
        return "an exported graph and torch.func transforms need plain torch functions"
    return library.WHY_NOT


NATIVE = Implementation("native", why_not, forward, backward, prepare, reads_memory=True, reads_quantized=True)
