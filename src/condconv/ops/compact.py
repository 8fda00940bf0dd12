"""Compact experts: bfloat16, or int8 with a scale for each expert and output channel. For inference.

Experts are what a conditional layer reads most of when the batch is small. Stored in two bytes or one a number they are
widened where they are used: `W[e, o] = weight_scale[e, o] * weight[e, o]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    """Return compact experts as ordinary ones: exact for bfloat16, rounded once for int8.

    Args:
        experts: bfloat16 or int8; shapes as in `quantize`.
        scale: `[E, O]`, or `None` for bfloat16.
        groups: G.
        transposed: Whether they are those of a transposed convolution.
        dtype: fp32, or fp64.
    """
    wide = experts.to(dtype)
    return wide if scale is None else wide * along_outputs(scale.to(dtype), experts, groups, transposed)
