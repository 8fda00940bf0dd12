"""Expert kernels: how they start, alone or as copies of a trained kernel."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.ops.validation import check_tensor

ROUTED_SPREAD = 0.6
"""Of `expert_spread`, where a shared kernel has routed parts: for 0.5 these start at 0.3 of the kernel's deviation."""


@torch.no_grad()
def init_experts_(weight: Tensor, bias: Tensor | None) -> None:
    """Draw each expert on its own as torch initialises one layer, in place.

    Fans are those of one expert `weight[e]`: on the stack they would count the experts as channels.

    Args:
        weight: `[E, O, C/G, *K]` or `[E, O, C]`.
        bias: `[E, O]` or `None`.

    Raises:
        UsageError: One of them is not a tensor of such a shape.

    Source:
        The authors' `get_condconv_initializer`; `torch.nn.Conv2d.reset_parameters` for the distribution.
    """
    check_tensor("weight", weight)
    if weight.dim() < 3 or not weight.is_floating_point():
        raise UsageError(
            f"`weight` must have shape [E, O, C/groups, *kernel] and a float dtype, got {weight.dtype} "
            f"{tuple(weight.shape)}: stack one kernel per expert"
        )
    if bias is not None:
        check_tensor("bias", bias)
        if bias.dim() != 2 or len(bias) != len(weight) or not bias.is_floating_point():
            raise UsageError(
                f"`bias` must have shape [E, O] with E = {len(weight)} and a float dtype, got {bias.dtype} "
                f"{tuple(bias.shape)}: give one bias per expert"
            )
    for index, expert in enumerate(weight):
        if expert.numel() == 0:
            continue
        nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
        if bias is not None:
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(expert)
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(bias[index], -bound, bound)


def is_expert_spread(expert_spread: Any) -> bool:
    """Return whether `spread_experts` can take it: a finite number of at least 0, numpy's too."""
    return isinstance(expert_spread, Real) and 0 <= float(expert_spread) < math.inf


@torch.no_grad()
def spread_experts(kernel: Tensor, routing_weights: Tensor, expert_spread: float) -> Tensor:
    """Return experts whose mixture under `routing_weights` is `kernel`, and which differ from one another.

    `W_e = (kernel + d_e) / sum(r)` with random `d_e` of standard deviation `expert_spread * kernel.std()`, projected so
    that `sum_e r_e d_e = 0`. Computed in fp64 and rounded once.

    Args:
        kernel: Any shape.
        routing_weights: `[E]`, not summing to zero; the weights every input has at the start.
        expert_spread: Relative to the spread of the kernel's entries; 0 for exact copies.

    Returns:
        `[E, *kernel.shape]` in the dtype, on the device and in the layout of `kernel`.

    Raises:
        UsageError: An argument is not a tensor of floats, or `expert_spread` not a number of at least 0.
    """
    check_tensor("kernel", kernel)
    if not kernel.is_floating_point():
        raise UsageError(f"`kernel` must have a float dtype, got {kernel.dtype}: convert it first")
    check_tensor("routing_weights", routing_weights)
    if routing_weights.dim() != 1 or len(routing_weights) == 0:
        raise UsageError(
            f"`routing_weights` must have shape [E], got {tuple(routing_weights.shape)}: give those of one example"
        )
    if not is_expert_spread(expert_spread):
        raise UsageError(
            f"`expert_spread` must be a number of at least 0, got {shown(expert_spread)}: 0 makes exact copies"
        )
    weights = routing_weights.to(kernel.device, torch.float64)
    exact = kernel.double()
    experts = exact.expand(len(weights), *kernel.shape)
    if expert_spread > 0 and len(weights) > 1 and kernel.numel() > 1:
        drawn = torch.randn(experts.shape, dtype=torch.float32, device=kernel.device).double()
        along = torch.tensordot(weights, drawn, dims=1) / weights.square().sum()
        drawn -= weights.view(-1, *(1,) * kernel.dim()) * along
        experts = experts + expert_spread * exact.std() * drawn
    stacked = (experts / weights.sum()).to(kernel.dtype)
    return in_layout_of(kernel, stacked)


def in_layout_of(kernel: Tensor, experts: Tensor) -> Tensor:
    """Return `experts` with each expert in the memory layout of `kernel`."""
    if kernel.dim() in (4, 5) and not kernel.is_contiguous():
        layout = torch.channels_last if kernel.dim() == 4 else torch.channels_last_3d
        flat = experts.flatten(0, 1).contiguous(memory_format=layout)
        return flat.unflatten(0, experts.shape[:2])
    return experts.contiguous()
