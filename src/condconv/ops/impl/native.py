"""Compiled kernels for the CPU: kernels are mixed where they are used, and never reach memory.

Neither do the gradients of an example's kernel: they are spread over the experts' as they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, laid_out_as
from condconv.ops.native.library import Call


def forward(
    x: Tensor, weight: Tensor, routing_weights: Tensor, geometry: Geometry, weight_scale: Tensor | None = None
) -> Tensor:
    """Convolve example b of x `[B, C, H, W]` with `sum_e routing_weights[b, e] * weight[e]`.

    Args:
        x: fp32, bfloat16 or fp16 on the CPU, not empty. Computed in fp32 with channels innermost: a narrower one is
            widened, a contiguous one turned around, and the output back.
        weight: `[E, O, C/G, KH, KW]`; fp32 or fp16, or bfloat16 or int8, which are widened as they are mixed.
        routing_weights: `[B, E]`, any dtype.
        geometry: Not transposed.
        weight_scale: `[E, O]`, fp32, to be multiplied with the experts, or `None`.

    Returns:
        `[B, O, H', W']` in the dtype and the layout of x. Sums are fp32, rounded once.
    """
    experts = weight.float() if weight.dtype == torch.float16 else weight
    experts = experts if experts.is_contiguous() or _inside(experts).is_contiguous() else experts.contiguous()
    weights = routing_weights.float()
    if weight_scale is not None:
        weights = weights[:, :, None] * weight_scale
    source = _channels_inside(x)
    output = Call(source, experts, weights, geometry).forward()
    if source is x and not x.is_contiguous():
        return output  # as x is: fp32 with channels innermost
    return laid_out_as(output.to(x.dtype), x)


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
    call = Call(source, experts, weights, geometry)
    grad_x = grad_weight = grad_routing = None
    if needs_x:
        grad_x = torch.empty_like(source)
        call.input_gradient(grad, grad_x)
        grad_x = laid_out_as(grad_x.to(x.dtype), x)
    if needs_weight or needs_routing:
        found = torch.empty_like(experts)
        grad_routing = call.weight_gradient(grad, found)
        grad_weight = found if needs_weight else None
    return grad_x, grad_weight, grad_routing


def _inside(weight: Tensor) -> Tensor:
    return weight.permute(0, 1, 3, 4, 2)


def _channels_inside(x: Tensor) -> Tensor:
    return x.float().contiguous(memory_format=torch.channels_last)
