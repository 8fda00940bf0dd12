"""The gradients of depthwise experts and their routing weights, all taps at once; see `dense_gradient`."""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from condconv.ops.triton import tiles
from condconv.ops.triton.loading import spread
from condconv.ops.triton.passes import Pass, sums_for


@triton.jit
def depthwise_kernel(
    x_ptr, grad_ptr, experts_ptr, routing_ptr, found_ptr, partial_ptr,
    batch, part, channels, x_h, x_w, y_h, y_w,
    step_h, step_w, offset_h, offset_w, tap_offset_h, tap_offset_w,
    x_stride_b, x_stride_c, x_stride_h, x_stride_w,
    expert_stride_e, expert_stride_g, expert_stride_m, expert_stride_k, expert_stride_h, expert_stride_w,
    grad_stride_b, grad_stride_c, grad_stride_h, grad_stride_w,
    found_stride,
    EXPERTS: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, ROWS: tl.constexpr,
    PADDED: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Sum up all taps of CHANNELS channels of y over `part` examples; TAPS is their number as a power of two."""
    tile = tl.program_id(0)
    first = tl.program_id(1) * part
    c = tile * CHANNELS + tl.arange(0, CHANNELS)
    tap = tl.arange(0, TAPS)
    e = tl.arange(0, PADDED)
    tap_h = tap // TAPS_W
    tap_w = tap % TAPS_W
    group = c // ROWS
    offset = (
        (tap_h * expert_stride_h + tap_w * expert_stride_w)[:, None]
        + (group * expert_stride_g + c % ROWS * expert_stride_m)[None, :]
    )  # fmt: skip
    offsets = e.to(tl.int64)[:, None, None] * expert_stride_e + offset[None, :, :]
    mask = (e < EXPERTS)[:, None, None] & (tap < TAPS_H * TAPS_W)[None, :, None] & (c < channels)[None, None, :]
    experts = tl.load(experts_ptr + offsets, mask=mask, other=0.0)
    found = tl.zeros((PADDED, TAPS, CHANNELS), tl.float32)
    x_base = x_ptr + first.to(tl.int64) * x_stride_b + (group * x_stride_c)[None, :, None]
    grad_base = grad_ptr + first.to(tl.int64) * grad_stride_b + (c * grad_stride_c)[:, None]
    weights_base = routing_ptr + first.to(tl.int64) * EXPERTS
    partial_base = partial_ptr + (tile.to(tl.int64) * batch + first) * EXPERTS
    for _ in range(first, tl.minimum(first + part, batch)):
        # Summed over pixels once an example: until then each pixel of a tile has a sum of its own.
        products = tl.zeros((TAPS, CHANNELS, PIXELS), tl.float32)
        for start in range(0, y_h * y_w, PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            exists = pixel < y_h * y_w
            row = (pixel // y_w * step_h + offset_h)[None, :] + (tap_h * tap_offset_h)[:, None]
            column = (pixel % y_w * step_w + offset_w)[None, :] + (tap_w * tap_offset_w)[:, None]
            inside = exists[None, :] & (row >= 0) & (row < x_h) & (column >= 0) & (column < x_w)
            grad_offset = pixel // y_w * grad_stride_h + pixel % y_w * grad_stride_w
            grad_mask = (c < channels)[:, None] & exists[None, :]
            grad = tl.load(grad_base + grad_offset[None, :], mask=grad_mask, other=0.0).to(tl.float32)
            x_offset = row * x_stride_h + column * x_stride_w
            x_mask = inside[:, None, :] & (c < channels)[None, :, None] & (tap < TAPS_H * TAPS_W)[:, None, None]
            x = tl.load(x_base + x_offset[:, None, :], mask=x_mask, other=0.0)
            products += grad[None, :, :] * x.to(tl.float32)
        added, dots = spread(tl.sum(products, 2), experts, tl.load(weights_base + e, mask=e < EXPERTS, other=0.0))
        found += added
        tl.store(partial_base + e, dots, mask=e < EXPERTS)
        x_base += x_stride_b
        grad_base += grad_stride_b
        weights_base += EXPERTS
        partial_base += EXPERTS
    tl.store(found_ptr + tl.program_id(1).to(tl.int64) * found_stride + offsets, found, mask=mask)


def weight_gradient(each: Pass, routing_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the experts of a forward pass, laid out as they are, and of the routing weights `[B, E]`.

    Args:
        each: Its target holds the gradient of the output; groups have one channel of the source.
        routing_weights: `[B, E]`, fp32, contiguous.
    """
    source, target, experts = each.source, each.target, each.experts
    count, _, rows, _, *taps = experts.shape
    batch, channels, *size = target.shape
    all_taps = tiles.power_of_two(taps[0] * taps[1])
    tile_channels, tile_pixels, num_warps = tiles.depthwise_gradient(all_taps, count)
    programs = triton.cdiv(channels, tile_channels)
    found, partial, part = sums_for(each, programs)
    depthwise_kernel[(programs, len(found))](
        *(source, target, experts, routing_weights, found, partial),
        *(batch, part, channels, *source.shape[2:], *size),
        *(*each.step, *each.offset, *each.tap_offset),
        *(*source.stride(), *experts.stride(), *target.stride(), found.stride(0)),
        EXPERTS=count,
        TAPS_H=taps[0],
        TAPS_W=taps[1],
        ROWS=rows,
        PADDED=tiles.power_of_two(count),
        TAPS=all_taps,
        CHANNELS=tile_channels,
        PIXELS=tile_pixels,
        num_warps=num_warps,
    )
    return found.sum(0) if len(found) > 1 else found[0], partial.sum(0)
