"""The depthwise convolution, and the gradient for its input: x is read once and y written once."""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from condconv.ops.triton import tiles
from condconv.ops.triton.loading import mix_tile
from condconv.ops.triton.passes import Pass


@triton.jit
def depthwise_kernel(
    x_ptr, kernels_ptr, routing_ptr, y_ptr,
    channels, taps_h, taps_w, x_h, x_w, y_h, y_w,
    step_h, step_w, offset_h, offset_w, tap_offset_h, tap_offset_w,
    x_stride_b, x_stride_c, x_stride_h, x_stride_w,
    kernel_stride_e, kernel_stride_g, kernel_stride_m, kernel_stride_k, kernel_stride_h, kernel_stride_w,
    y_stride_b, y_stride_c, y_stride_h, y_stride_w,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Compute CHANNELS channels by PIXELS pixels of an example; a group has ROWS channels of y and DEPTH of x.

    EXPERTS is 0 for one kernel per example. Taps are not unrolled: with the experts of all taps in flight registers run
    out, by thousands of bytes.
    """
    pixel_tiles = tl.cdiv(y_h * y_w, PIXELS)
    channel_tiles = tl.cdiv(channels, CHANNELS)
    pid = tl.program_id(0)
    pixel = pid % pixel_tiles * PIXELS + tl.arange(0, PIXELS)
    pid = pid // pixel_tiles
    c = pid % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    example = (pid // channel_tiles).to(tl.int64)
    y_row = pixel // y_w
    y_column = pixel % y_w
    group = c // ROWS
    kernels_base = kernels_ptr + group * kernel_stride_g + c % ROWS * kernel_stride_m
    if EXPERTS == 0:
        kernels_base += example * kernel_stride_e
    weights = routing_ptr + example * EXPERTS
    y = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for tap in range(taps_h * taps_w):
        row = y_row * step_h + offset_h + tap // taps_w * tap_offset_h
        column = y_column * step_w + offset_w + tap % taps_w * tap_offset_w
        inside = (pixel < y_h * y_w) & (row >= 0) & (row < x_h) & (column >= 0) & (column < x_w)
        mask = (c < channels)[:, None] & inside[None, :]
        kernels = kernels_base + (tap // taps_w * kernel_stride_h + tap % taps_w * kernel_stride_w)
        for k in tl.static_range(DEPTH):
            if EXPERTS == 0:
                kernel = tl.load(kernels + k * kernel_stride_k, mask=c < channels, other=0.0).to(tl.float32)
            else:
                kernel = mix_tile(kernels + k * kernel_stride_k, c < channels, kernel_stride_e, weights, EXPERTS)
            x_offset = (group * DEPTH + k)[:, None] * x_stride_c + (row * x_stride_h + column * x_stride_w)[None, :]
            x = tl.load(x_ptr + example * x_stride_b + x_offset, mask=mask, other=0.0)
            y += kernel[:, None] * x.to(tl.float32)
    y_offset = c[:, None] * y_stride_c + (y_row * y_stride_h + y_column * y_stride_w)[None, :]
    y_mask = (c < channels)[:, None] & (pixel < y_h * y_w)[None, :]
    tl.store(y_ptr + example * y_stride_b + y_offset, y.to(y_ptr.dtype.element_ty), mask=y_mask)


def convolve(each: Pass, routing_weights: Tensor | None) -> None:
    """Fill the target of a pass whose groups have one channel in source or target; arguments as `dense.convolve`."""
    source, target, experts = each.source, each.target, each.experts
    _, _, rows, depth, *taps = experts.shape
    count = 0 if routing_weights is None else len(experts)
    batch, channels, *size = target.shape
    tile_channels, tile_pixels, num_warps = tiles.depthwise(size[0] * size[1])
    programs = triton.cdiv(size[0] * size[1], tile_pixels) * triton.cdiv(channels, tile_channels) * batch
    depthwise_kernel[(programs,)](
        *(source, experts, source if routing_weights is None else routing_weights, target),
        *(channels, *taps, *source.shape[2:], *size),
        *(*each.step, *each.offset, *each.tap_offset),
        *(*source.stride(), *experts.stride(), *target.stride()),
        EXPERTS=count,
        ROWS=rows,
        DEPTH=depth,
        CHANNELS=tile_channels,
        PIXELS=tile_pixels,
        num_warps=num_warps,
    )
