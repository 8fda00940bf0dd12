"""Convolutions with one kernel per example, for kernels that are not a weighted sum of stored ones."""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.ops.autocast import autocast_disabled, autocast_dtype
from condconv.ops.geometry import Geometry, laid_out_as
from condconv.ops.impl import grouped, matmul
from condconv.ops.recording import tracing


def conv_per_example(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Convolve example b of x `[B, C, *S]` with kernel b of `[B, O, C/G, *K]`; returns `[B, O, *S']`.

    The batch is folded into the groups of one convolution. What is recorded for a file or compiled is a product of
    matrices per example, which works with any batch size. The kernels are kept for the backward pass.

    Args:
        x: The input, which has been padded as far as zeros on both sides are not enough.
        kernels: Of a transposed convolution `[B, C, O/G, *K]`.
        geometry: Stride, padding and so on.
    """
    dtype = autocast_dtype(x.device)
    dtype = x.dtype if dtype is None or x.dtype == torch.float64 else dtype
    apply = matmul.apply if torch.compiler.is_compiling() or tracing() else grouped.apply
    with autocast_disabled(x.device):
        return laid_out_as(apply(x.to(dtype), kernels.to(dtype), geometry), x)
