"""Quantized experts: bfloat16, or int8 with a scale for each expert and output channel. For inference.

Experts are what a conditional layer reads most of when the batch is small. Stored in two bytes or one a number they are
widened where they are used: `W[e, o] = weight_scale[e, o] * weight[e, o]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.errors import UsageError
from condconv.ops.autocast import autocast_dtype

QUANTIZED_DTYPES = (torch.bfloat16, torch.int8)
LARGEST = 127  # of int8; -128 would make the range uneven


def quantize(experts: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """Round experts to int8, each expert's output channel by a scale of its own.

    `scale = max |W| / 127`, so that no number is off by more than half the scale.

    Args:
        experts: `[E, O, C/G, *K]`, `[E, O, C]`, or transposed `[E, C, O/G, *K]`; fp32, finite.
        groups: G.
        transposed: Whether they are those of a transposed convolution.

    Returns:
        int8 experts in the shape and layout of `experts`, and the scales `[E, O]`, fp32, positive.
    """
    outputs = experts.unflatten(1, (groups, -1)).transpose(2, 3).flatten(1, 2) if transposed else experts
    largest = outputs.flatten(2).abs().amax(2)
    scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    steps = experts / along_outputs(scale, experts, groups, transposed)
    return steps.round().to(torch.int8), scale


def along_outputs(scale: Tensor, experts: Tensor, groups: int, transposed: bool) -> Tensor:
    """Return numbers of output channels `[E, O]` in a shape that can be multiplied with stacked experts."""
    if transposed:  # [E, C, O/G, *K]: the groups lie along C
        per_group = scale.unflatten(1, (groups, -1))
        scale = per_group.repeat_interleave(experts.shape[1] // groups, dim=1)
    return scale[(..., *(None,) * (experts.dim() - scale.dim()))]


def widen(experts: Tensor, scale: Tensor | None, groups: int, transposed: bool, dtype: torch.dtype) -> Tensor:
    """Return quantized experts as ordinary ones: exact for bfloat16, rounded once for int8.

    Args:
        experts: bfloat16 or int8; shapes as in `quantize`.
        scale: `[E, O]`, or `None` for bfloat16.
        groups: G.
        transposed: Whether they are those of a transposed convolution.
        dtype: fp32, or fp64.
    """
    wide = experts.to(dtype)
    return wide if scale is None else wide * along_outputs(scale.to(dtype), experts, groups, transposed)


def check_quantized(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    out_channels: int,
) -> bool:
    """Check that quantized experts have the scale they need and no gradients to compute.

    Returns:
        Whether the experts are quantized: int8, or bfloat16 for an x that is not, outside autocast.

    Raises:
        UsageError: They do not fit, or a gradient is needed.
    """
    if (weight.dtype == torch.int8) != (weight_scale is not None):
        wanted = "be given for int8 experts" if weight_scale is None else f"be None for {weight.dtype} experts"
        raise UsageError(
            f"`weight_scale` must {wanted}, got {'None' if weight_scale is None else 'a tensor'}: it belongs to int8 "
            "experts, condconv.quantize_experts_ makes both"
        )
    if weight_scale is not None:
        shape, found = (weight.shape[0], out_channels), tuple(weight_scale.shape)
        if found != shape or weight_scale.dtype != torch.float32:
            raise UsageError(
                f"`weight_scale` must be torch.float32 [E, O] = {shape}, got {weight_scale.dtype} {found}: take what "
                "condconv.quantize_experts_ makes"
            )
    autocasting = autocast_dtype(x.device) is not None and x.dtype != torch.float64
    quantized = weight_scale is not None or (weight.dtype != x.dtype and not autocasting)
    tensors = (x, weight, routing_weights, bias, weight_scale)
    if quantized and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise UsageError(
            f"`weight` must hold ordinary experts if gradients are needed, got quantized ones ({weight.dtype}): call "
            "under torch.no_grad() or torch.inference_mode(), and quantize after training"
        )
    return quantized
