"""A convolution, or its gradient for the input, as passes that all look alike to a kernel.

In a pass a number of the target is a sum over taps and over channels of the source, and the source's pixel is
`target pixel * step + offset + tap * tap_offset`. A forward convolution is one pass. The gradient for the input is one
for each class of pixels modulo the stride: a class uses only some of the taps, and computes no zeros.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry
from condconv.ops.triton import tiles

Pair = tuple[int, int]


class Pass(NamedTuple):
    """What one launch of a kernel computes; pairs are for height and width.

    Attributes:
        source: `[B, G * K, H, W]`.
        experts: `[E, G, M, K, TH, TW]`, a view: with the taps of this pass.
        target: `[B, G * M, H', W']`, a view: with the pixels of this pass.
        step: Pixels of the source from one pixel of the target to the next.
        offset: Where the first pixel and the first tap meet the source.
        tap_offset: Pixels of the source from one tap to the next.
    """

    source: Tensor
    experts: Tensor
    target: Tensor
    step: Pair
    offset: Pair
    tap_offset: Pair

    @property
    def flat(self) -> bool:
        """Return whether source and target have the same pixels, in rows without gaps: all are then read as one row."""
        same = self.source.shape[2:] == self.target.shape[2:] and self.step == (1, 1) and self.offset == (0, 0)
        whole = all(each.stride(2) == each.shape[3] * each.stride(3) for each in (self.source, self.target))
        return same and whole and self.experts.shape[4:] == (1, 1)


def forward_pass(x: Tensor, weight: Tensor, output: Tensor, geometry: Geometry) -> Pass:
    """Return the pass that fills `output` `[B, O, H', W']` from x and the experts `[E, O, C/G, KH, KW]`."""
    height, width = geometry.padding
    experts = _grouped(weight, geometry)
    return Pass(x, experts, output, _pair(geometry.stride), (-height, -width), _pair(geometry.dilation))


def gradient_passes(grad_output: Tensor, weight: Tensor, grad_x: Tensor, geometry: Geometry) -> list[Pass]:
    """Return the passes that fill `grad_x` `[B, C, H, W]`; pixels that no output saw are set to zero here."""
    experts = _grouped(weight, geometry).transpose(2, 3)
    found = []
    for row, column in itertools.product(*(range(min(geometry.stride[dim], grad_x.shape[2 + dim])) for dim in (0, 1))):
        target = grad_x[:, :, row :: geometry.stride[0], column :: geometry.stride[1]]
        rows, columns = _taps(row, 0, weight, geometry), _taps(column, 1, weight, geometry)
        if rows is None or columns is None:
            target.zero_()
            continue
        (first_h, period_h, offset_h, tap_h), (first_w, period_w, offset_w, tap_w) = rows, columns
        some = experts[..., first_h::period_h, first_w::period_w]
        found.append(Pass(grad_output, some, target, (1, 1), (offset_h, offset_w), (tap_h, tap_w)))
    return found


def _taps(start: int, dim: int, weight: Tensor, geometry: Geometry) -> tuple[int, int, int, int] | None:
    """Return the taps that pixels `start + i * stride` of the input met, and where in the output; `None` if none did.

    A tap t met pixel p in output `(p + padding - t * dilation) / stride`, if that is a whole number.

    Returns:
        The first tap, the number of taps from one to the next, the output of pixel `start` at the first tap, and what
        is added to that from one tap to the next.
    """
    stride, dilation = geometry.stride[dim], geometry.dilation[dim]
    period = stride // math.gcd(stride, dilation)
    reach = start + geometry.padding[dim]
    for tap in range(min(period, weight.shape[3 + dim])):
        if (reach - tap * dilation) % stride == 0:
            return tap, period, (reach - tap * dilation) // stride, -dilation * period // stride
    return None


def _grouped(weight: Tensor, geometry: Geometry) -> Tensor:
    """View `[E, G * M, C, KH, KW]` as `[E, G, M, C, KH, KW]`."""
    return weight.unflatten(1, (geometry.groups, weight.shape[1] // geometry.groups))


def _pair(numbers: tuple[int, ...]) -> Pair:
    height, width = numbers
    return height, width


def sums_for(each: Pass, programs: int) -> tuple[Tensor, Tensor, int]:
    """Return memory for the sums of `programs` programs that own tiles of the experts' gradient.

    Returns:
        fp32, a gradient laid out as the experts for each part of the batch, `[parts, E, G, M, K, TH, TW]`; fp32,
        `[programs, B, E]` for the routing weights; and how many examples a part has.
    """
    batch, experts = len(each.source), each.experts
    part = -(-batch // tiles.parts(programs, batch))
    size, stride = (-(-batch // part), *experts.shape), (experts.numel(), *experts.stride())
    found = torch.empty_strided(size, stride, dtype=torch.float32, device=experts.device)
    partial = torch.empty(programs, batch, len(experts), dtype=torch.float32, device=experts.device)
    return found, partial, part
