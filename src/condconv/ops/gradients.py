"""The gradients of the registered operator: those of an implementation, the bias's, and the form that is promised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, laid_out_as, strided_as
from condconv.ops.implementation import Backward
from condconv.ops.mixing import accumulation_dtype


def gradients(
    backward: Backward,
    grad_output: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    geometry: Geometry,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of x, weight, routing weights and bias, an empty tensor where `needs` is false.

    The experts' gradients are added up in fp32 (fp64 for fp64) and rounded once.
    """
    x, weight, routing_weights, bias = tensors
    needs_x, needs_weight, needs_routing, needs_bias = needs
    wide = accumulation_dtype(weight.dtype)
    grad_x, grad_weight, grad_routing = backward(
        grad_output, x, weight, routing_weights, geometry, (needs_x, needs_weight, needs_routing)
    )
    grads = empty_grads(x)
    if grad_x is not None:
        grads[0] = strided_as(laid_out_as(grad_x, x), x)
    if needs_weight and grad_weight is not None:
        grads[1] = _in_form_of(weight, grad_weight)
    if bias is not None and (needs_bias or needs_routing):
        grad_shift = grad_output.flatten(2).sum(2, dtype=wide)
        if needs_bias:
            grads[3] = _in_form_of(bias, routing_weights.to(wide).T @ grad_shift)
        if grad_routing is not None:
            grad_routing = grad_routing + grad_shift @ bias.to(wide).T
    if needs_routing and grad_routing is not None:
        grads[2] = _in_form_of(routing_weights, grad_routing)
    return grads


def empty_grads(x: Tensor) -> list[Tensor]:
    """Return four empty tensors: an operator returns a tensor also where no gradient is asked for."""
    return [x.new_empty(0) for _ in range(4)]


def _in_form_of(tensor: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient in the dtype and, as the operator's fake promises, the layout of what it belongs to."""
    like = torch.empty_like(tensor, device="meta")
    if grad.stride() == like.stride():
        return grad.to(tensor.dtype)
    return torch.empty_like(tensor).copy_(grad)
