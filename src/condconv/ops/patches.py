"""Patches of an input (im2col) and their adjoint (col2im), in one, two or three dimensions.

Built from strided views, one a kernel tap, so that they work with any layout, dtype and symbolic size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from condconv.ops.geometry import Geometry


def zero_pad(x: Tensor, geometry: Geometry) -> Tensor:
    """Return x `[B, C, *S]` with the geometry's symmetric padding applied; x itself if there is none."""
    if not any(geometry.padding):
        return x
    return F.pad(x, [amount for amount in reversed(geometry.padding) for _ in range(2)])


def tap_views(padded: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Iterator[Tensor]:
    """Yield for each kernel tap the view `[B, C, *S']` of the pixels it multiplies, S' the output's size.

    Each view's end is counted from the end of x. From its start it would be `(S' - 1) * stride` away, which no graph
    with open sizes can prove to lie inside.
    """
    over = geometry.output_padding if geometry.transposed else (0,) * len(geometry.stride)
    dims = [*zip(padded.shape[2:], kernel_size, geometry.dilation, geometry.stride, over, strict=True)]
    for tap in itertools.product(*(range(size) for size in kernel_size)):
        index = [slice(None), slice(None)]
        for offset, (extent, taps, dilation, stride, beyond) in zip(tap, dims, strict=True):
            after = (taps - 1 - offset) * dilation + beyond
            index.append(slice(offset * dilation, extent - after, stride))
        yield padded[tuple(index)]


def extract_patches(x: Tensor, kernel_size: Sequence[int], geometry: Geometry) -> Tensor:
    """Return the patches of x `[B, C, *S]` as `[B, C * T, *S']`, S' the output's size, the T taps innermost."""
    padded = zero_pad(x, geometry)
    views = list(tap_views(padded, kernel_size, geometry))
    if len(views) == 1:
        return views[0]
    return torch.stack(views, dim=2).flatten(1, 2)


def fold_patches(columns: Tensor, kernel_size: Sequence[int], size: Sequence[int], geometry: Geometry) -> Tensor:
    """Add patches `[B, C * T, *S']` up where they came from: the adjoint of `extract_patches`, `[B, C, *size]`."""
    taps = prod(kernel_size)
    moved = any(geometry.padding) or any(geometry.output_padding) or any(step != 1 for step in geometry.stride)
    if taps == 1 and not moved:
        return columns
    columns = columns.unflatten(1, (columns.shape[1] // taps, taps))
    padded_size = [extent + 2 * amount for extent, amount in zip(size, geometry.padding, strict=True)]
    padded = columns.new_zeros(columns.shape[0], columns.shape[1], *padded_size)
    views = tap_views(padded, kernel_size, geometry)
    for view, tap in zip(views, columns.unbind(2), strict=True):
        view.add_(tap)
    inner = (slice(amount, amount + extent) for amount, extent in zip(geometry.padding, size, strict=True))
    return padded[(slice(None), slice(None), *inner)]
