"""The gradients of experts and routing weights, without a gradient of any example's kernel in memory.

A program owns a tile of the kernel. It forms that tile of one example's gradient after another's, adds each into as
many accumulators as there are experts, and multiplies it with the experts for the routing weights. No two programs add
to the same memory, so results do not depend on the order in which they run.
"""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from condconv.ops.triton import tiles
from condconv.ops.triton.dense import precision
from condconv.ops.triton.loading import multiply, split_pixel, spread
from condconv.ops.triton.passes import Pass, sums_for


@triton.jit
def dense_kernel(
    x_ptr, grad_ptr, experts_ptr, routing_ptr, found_ptr, partial_ptr,
    batch, part, rows, depth, taps_h, taps_w, x_h, x_w, y_h, y_w,
    step_h, step_w, offset_h, offset_w, tap_offset_h, tap_offset_w,
    x_stride_b, x_stride_c, x_stride_h, x_stride_w,
    expert_stride_e, expert_stride_g, expert_stride_m, expert_stride_k, expert_stride_h, expert_stride_w,
    grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w,
    found_stride,
    EXPERTS: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
    PADDED: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Sum up a tile ROWS x DEPTH of one tap over `part` examples; PADDED is EXPERTS as a power of two."""
    row_tiles = tl.cdiv(rows, ROWS)
    depth_tiles = tl.cdiv(depth, DEPTH)
    tile = tl.program_id(0)
    first = tl.program_id(1) * part
    k = tile % depth_tiles * DEPTH + tl.arange(0, DEPTH)
    tap = tile // depth_tiles % (taps_h * taps_w)
    rest = tile // depth_tiles // (taps_h * taps_w)
    m = rest % row_tiles * ROWS + tl.arange(0, ROWS)
    group = rest // row_tiles
    e = tl.arange(0, PADDED)
    offset = (
        group * expert_stride_g + tap // taps_w * expert_stride_h + tap % taps_w * expert_stride_w
        + m[:, None] * expert_stride_m + k[None, :] * expert_stride_k
    )  # fmt: skip
    offsets = e.to(tl.int64)[:, None, None] * expert_stride_e + offset[None, :, :]
    mask = (e < EXPERTS)[:, None, None] & (m < rows)[None, :, None] & (k < depth)[None, None, :]
    experts = tl.load(experts_ptr + offsets, mask=mask, other=0.0)
    found = tl.zeros((PADDED, ROWS, DEPTH), tl.float32)
    x_base = x_ptr + first.to(tl.int64) * x_stride_b + (group * depth + k)[:, None] * x_stride_c
    grad_base = grad_ptr + first.to(tl.int64) * grad_stride_b + (group * rows + m)[:, None] * grad_stride_c
    weights_base = routing_ptr + first.to(tl.int64) * EXPERTS
    partial_base = partial_ptr + (tile.to(tl.int64) * batch + first) * EXPERTS
    for _ in range(first, tl.minimum(first + part, batch)):
        gradient = tl.zeros((ROWS, DEPTH), tl.float32)
        for start in range(0, y_h * y_w, PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            exists = pixel < y_h * y_w
            y_row, y_column = split_pixel(pixel, y_w, FLAT)
            row = y_row * step_h + offset_h + tap // taps_w * tap_offset_h
            column = y_column * step_w + offset_w + tap % taps_w * tap_offset_w
            inside = exists & (row >= 0) & (row < x_h) & (column >= 0) & (column < x_w)
            grad_offset = y_row * grad_stride_h + y_column * grad_stride_w
            grad = tl.load(grad_base + grad_offset[None, :], mask=(m < rows)[:, None] & exists[None, :], other=0.0)
            x_offset = row * x_stride_h + column * x_stride_w
            x = tl.load(x_base + x_offset[None, :], mask=inside[None, :] & (k < depth)[:, None], other=0.0)
            gradient = multiply(grad, tl.trans(x), gradient, PRECISION)
        added, products = spread(gradient, experts, tl.load(weights_base + e, mask=e < EXPERTS, other=0.0))
        found += added
        tl.store(partial_base + e, products, mask=e < EXPERTS)
        x_base += x_stride_b
        grad_base += grad_stride_b
        weights_base += EXPERTS
        partial_base += EXPERTS
    tl.store(found_ptr + tl.program_id(1).to(tl.int64) * found_stride + offsets, found, mask=mask)


def weight_gradient(each: Pass, routing_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the experts of a forward pass, laid out as they are, and of the routing weights `[B, E]`.

    Args:
        each: Its target holds the gradient of the output.
        routing_weights: `[B, E]`, fp32, contiguous.
    """
    source, target, experts = each.source, each.target, each.experts
    if each.flat:
        source, target = (tensor.flatten(2)[:, :, None] for tensor in (source, target))
    count, groups, rows, depth, *taps = experts.shape
    tile = tiles.dense_gradient(target.shape[2] * target.shape[3], count)
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(depth, tile.depth) * groups * taps[0] * taps[1]
    found, partial, part = sums_for(each, programs)
    dense_kernel[(programs, len(found))](
        *(source, target, experts, routing_weights, found, partial),
        *(len(source), part, rows, depth, *taps, *source.shape[2:], *target.shape[2:]),
        *(*each.step, *each.offset, *each.tap_offset),
        *(*source.stride(), *experts.stride(), *target.stride(), found.stride(0)),
        EXPERTS=count,
        FLAT=each.flat,
        PRECISION=precision(),
        PADDED=tiles.power_of_two(count),
        ROWS=tile.rows,
        DEPTH=tile.depth,
        PIXELS=tile.pixels,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return found.sum(0) if len(found) > 1 else found[0], partial.sum(0)
