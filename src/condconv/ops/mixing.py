"""Mixing the experts, `sum_e r[b, e] * W[e]`, and its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: at least fp32, fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype; itself at once if it has it, since `to` takes half as long as a small product."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _storage_order(experts: Tensor) -> tuple[int, ...]:
    """Return the permutation of an expert's dimensions under which the stack is contiguous, if there is one."""
    dims = range(experts.dim())
    if experts.dim() >= 5 and not experts.is_contiguous():
        return (0, 1, *dims[3:], 2)  # each expert channels_last
    return tuple(dims)


def mix_kernels(experts: Tensor, routing_weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one kernel per example: `[E, ...]` experts and `[B, E]` weights give `[B, ...]`.

    The sum is taken in fp32 (fp64 for fp64) and rounded once to `dtype`. The layout of an expert
    (contiguous or channels_last) is kept, so that mixing reads memory in order.
    """
    order = _storage_order(experts)
    stored = experts.permute(order)
    wide = accumulation_dtype(experts.dtype)
    mixed = routing_weights.to(wide) @ stored.flatten(1).to(wide)
    mixed = mixed.to(dtype).unflatten(1, stored.shape[1:])
    inverse = [order.index(dim) for dim in range(len(order))]
    return mixed.permute(inverse)


def bind_mix(experts: Tensor, routing_weights: Tensor, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what mixes experts and weights that look like these without gradients, to `[B * O, ...]`.

    That is `mix_kernels`, with the examples side by side in the output channels.
    """
    wide, order = accumulation_dtype(experts.dtype), _storage_order(experts)
    if not experts.permute(order).is_contiguous() or {experts.dtype, routing_weights.dtype, dtype} != {wide}:
        return lambda experts, routing_weights: mix_kernels(experts, routing_weights, dtype).flatten(0, 1)
    num_experts, outputs, *kernel = experts.permute(order).shape
    shape = (len(routing_weights) * outputs, *kernel)
    if experts.is_contiguous():
        return lambda experts, routing_weights: torch.mm(routing_weights, experts.view(num_experts, -1)).view(shape)
    back = (0, len(kernel), *range(1, len(kernel)))

    def mix(experts: Tensor, routing_weights: Tensor) -> Tensor:
        stored = experts.permute(order).view(num_experts, -1)
        return torch.mm(routing_weights, stored).view(shape).permute(back)

    return mix


def mix_kernels_backward(grad_kernels: Tensor, experts: Tensor, routing_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `mix_kernels` for the experts and the routing weights, in the accumulation dtype."""
    order = _storage_order(experts)
    stored = experts.permute(order)
    wide = accumulation_dtype(experts.dtype)
    grads = grad_kernels.permute(order).flatten(1).to(wide)
    grad_routing = grads @ stored.flatten(1).to(wide).T
    grad_stored = (routing_weights.to(wide).T @ grads).unflatten(1, stored.shape[1:])
    inverse = [order.index(dim) for dim in range(len(order))]
    return grad_stored.permute(inverse), grad_routing


def mix_bias(bias: Tensor, routing_weights: Tensor, dtype: torch.dtype, spatial_dims: int) -> Tensor:
    """Return the mixed bias `[B, O, 1, ...]` of per-expert biases `[E, O]`, summed like `mix_kernels`."""
    return mix_kernels(bias, routing_weights, dtype)[(..., *(None,) * spatial_dims)]


def add_bias_(output: Tensor, bias: Tensor, routing_weights: Tensor) -> Tensor:
    """Add the mixed bias to an output `[B, O, *S]` in place, without gradients."""
    wide = accumulation_dtype(bias.dtype)
    shift = as_dtype(as_dtype(routing_weights, wide) @ as_dtype(bias, wide), output.dtype)
    return output.add_(shift.view(*shift.shape, *(1,) * (output.dim() - 2)))


def bind_bias(
    bias: Tensor | None, routing_weights: Tensor, shape: Sequence[int], dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return `add_bias_` for tensors that look like these, and an output of a shape and a dtype."""
    if bias is None or {bias.dtype, routing_weights.dtype, dtype} != {accumulation_dtype(bias.dtype)}:
        return add_bias_
    spread = (*shape[:2], *(1,) * (len(shape) - 2))
    return lambda output, bias, routing_weights: output.add_(torch.mm(routing_weights, bias).view(spread))
