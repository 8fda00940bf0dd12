"""Padding as users write it, resolved to what an implementation takes: a padded input and symmetric zeros."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from condconv.ops.geometry import laid_out_as

PADDING_NAMES = ("valid", "same", "tf_same")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
Padding = int | Sequence[int] | str


def tf_same_padding(size: int, taps: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the pixels TensorFlow's SAME adds before and after a dimension of `size` pixels.

    The output has `ceil(size / stride)` pixels and the odd pixel goes after: at stride 2 the padding depends
    on the size and is asymmetric, unlike torch's.
    """
    reach = dilation * (taps - 1) + 1
    # One remainder, not a division rounded up: where a graph leaves the size open, a compiler has to simplify it.
    total = max(reach - 1 - (size - 1) % stride, 0)
    return total // 2, total - total // 2


def resolve_padding(
    padding: Padding,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """Return the pixels to add before and after each spatial dimension.

    Args:
        padding: An int, a sequence with one int per dimension, or one of `PADDING_NAMES`. Checked before.
        input_size: Height and width, or as many sizes as there are spatial dimensions, in pixels.
        kernel_size: Taps a dimension.
        stride: Stride a dimension.
        dilation: Dilation a dimension.
    """
    dims = range(len(kernel_size))
    if isinstance(padding, (int, Integral)):
        return [(int(padding), int(padding)) for _ in dims]
    if padding == "valid":
        return [(0, 0) for _ in dims]
    if padding == "same":
        totals = [dilation[dim] * (kernel_size[dim] - 1) for dim in dims]
        return [(total // 2, total - total // 2) for total in totals]
    if padding == "tf_same":
        return [tf_same_padding(input_size[d], kernel_size[d], stride[d], dilation[d]) for d in dims]
    return [(int(amount), int(amount)) for amount in padding]


def split_padding(amounts: Sequence[tuple[int, int]], mode: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the symmetric zeros a convolution can pad by itself, and what `torch.nn.functional.pad` has to add before.

    Args:
        amounts: Pixels before and after each spatial dimension.
        mode: One of `PADDING_MODES`.

    Returns:
        One number per dimension, and two per dimension from the last one on, or none at all.
    """
    # Of a size that an exported graph leaves open, this must not depend on whether it is even.
    is_free = any(isinstance(before, torch.SymInt) for before, _ in amounts)
    if mode == "zeros" and not is_free and all(before == after for before, after in amounts):
        return tuple(before for before, _ in amounts), ()
    return (0,) * len(amounts), tuple(amount for pair in reversed(amounts) for amount in pair)


def pad(x: Tensor, outside: Sequence[int], mode: str) -> Tensor:
    """Add what `split_padding` leaves to do before the convolution; the layout stays that of x."""
    if not outside:
        return x
    return laid_out_as(F.pad(x, list(outside), mode="constant" if mode == "zeros" else mode), x)


def pad_input(x: Tensor, amounts: Sequence[tuple[int, int]], mode: str) -> tuple[Tensor, tuple[int, ...]]:
    """Apply what a convolution cannot pad by itself; return the input and the symmetric zeros left to do.

    Args:
        x: `[B, C, *S]`.
        amounts: Pixels before and after each spatial dimension.
        mode: One of `PADDING_MODES`.
    """
    zeros, outside = split_padding(amounts, mode)
    return pad(x, outside, mode), zeros
