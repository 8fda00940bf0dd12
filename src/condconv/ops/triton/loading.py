"""What the kernels share: finding pixels, mixing a tile of the experts, and the adjoint of that."""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from condconv.ops.triton.limits import INTERPRETED

# The interpreter would multiply the bits of bf16 as whole numbers. In fp32 products of 16-bit floats are exact.
_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def split_pixel(pixel, width, FLAT: tl.constexpr):
    """Return row and column of pixels counted row by row; FLAT: all are one row, which keeps addresses simple."""
    if FLAT:
        row = pixel * 0
        column = pixel
    else:
        row = pixel // width
        column = pixel % width
    return row, column


@triton.jit
def add_expert(tile, experts, mask, weights):
    """Return `tile` and, added to it in fp32, one routing weight, or one per example, times one expert's tile."""
    weight = tl.load(weights)
    return tile + weight * tl.load(experts, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def mix_tile(experts, mask, stride, weights, EXPERTS: tl.constexpr):
    """Return `sum_e weights[e] * experts[e]` in fp32.

    `experts` points to a tile of the first expert, `weights` to its routing weight: one, or `[examples, 1, 1]`. The
    tile is loaded once for all examples. Pointers move, so that no offset outgrows 32 bits.
    """
    tile = tl.load(weights) * tl.load(experts, mask=mask, other=0.0).to(tl.float32)
    if EXPERTS <= 8:
        for _ in tl.static_range(1, EXPERTS):
            experts += stride
            weights += 1
            tile = add_expert(tile, experts, mask, weights)
    else:  # unrolled they would take more registers than there are
        for _ in range(1, EXPERTS):
            experts += stride
            weights += 1
            tile = add_expert(tile, experts, mask, weights)
    return tile


@triton.jit
def multiply(left, right, added, PRECISION: tl.constexpr):
    """Return `left @ right + added`, in fp32."""
    if _WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, added, input_precision=PRECISION)


@triton.jit
def spread(gradient, experts, weights):
    """Return what the gradient of one example's kernel `[R, Q]` adds to each expert's, and to its routing weights.

    Shapes: experts `[E, R, Q]`, weights `[E]`; returns `[E, R, Q]` and `[E]`.
    """
    added = weights[:, None, None] * gradient[None, :, :]
    return added, tl.sum(tl.sum(gradient[None, :, :] * experts.to(tl.float32), 2), 1)
