"""The convolution on the tensor cores, and the gradient for its input: a matrix product over taps and channels."""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from condconv.ops.triton import tiles
from condconv.ops.triton.loading import mix_tile, multiply, split_pixel
from condconv.ops.triton.passes import Pass


@triton.jit
def convolve_kernel(
    x_ptr, kernels_ptr, routing_ptr, y_ptr,
    batch, rows, depth, taps_h, taps_w, x_h, x_w, y_h, y_w,
    step_h, step_w, offset_h, offset_w, tap_offset_h, tap_offset_w,
    x_stride_b, x_stride_c, x_stride_h, x_stride_w,
    kernel_stride_e, kernel_stride_g, kernel_stride_m, kernel_stride_k, kernel_stride_h, kernel_stride_w,
    y_stride_b, y_stride_c, y_stride_h, y_stride_w,
    EXPERTS: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
    EXAMPLES: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Compute ROWS channels by PIXELS pixels of a group for EXAMPLES examples; EXPERTS is 0 for one kernel each.

    Of one example tiles are `[ROWS, PIXELS]`, of several `[EXAMPLES, ROWS, PIXELS]`; where there are too few, the last
    is computed again. Programs that follow one another share the experts' tiles.
    """
    pixel_tiles = tl.cdiv(y_h * y_w, PIXELS)
    row_tiles = tl.cdiv(rows, ROWS)
    pid = tl.program_id(0)
    pixel = pid % pixel_tiles * PIXELS + tl.arange(0, PIXELS)
    pid = pid // pixel_tiles
    first = pid % tl.cdiv(batch, EXAMPLES) * EXAMPLES
    pid = pid // tl.cdiv(batch, EXAMPLES)
    group = pid // row_tiles
    m = pid % row_tiles * ROWS + tl.arange(0, ROWS)
    if EXAMPLES == 1:
        example = first.to(tl.int64)
        y = tl.zeros((ROWS, PIXELS), tl.float32)
    else:
        example = tl.minimum(first + tl.arange(0, EXAMPLES), batch - 1).to(tl.int64)[:, None, None]
        y = tl.zeros((EXAMPLES, ROWS, PIXELS), tl.float32)
    y_row, y_column = split_pixel(pixel, y_w, FLAT)
    x_base = x_ptr + example * x_stride_b + group * depth * x_stride_c
    kernels_base = kernels_ptr + group * kernel_stride_g
    if EXPERTS == 0:
        kernels_base += example * kernel_stride_e
    depth_tiles = tl.cdiv(depth, DEPTH)
    for step in range(taps_h * taps_w * depth_tiles):
        tap = step // depth_tiles
        k = step % depth_tiles * DEPTH + tl.arange(0, DEPTH)
        row = y_row * step_h + offset_h + tap // taps_w * tap_offset_h
        column = y_column * step_w + offset_w + tap % taps_w * tap_offset_w
        inside = (pixel < y_h * y_w) & (row >= 0) & (row < x_h) & (column >= 0) & (column < x_w)
        x_offset = k[:, None] * x_stride_c + (row * x_stride_h + column * x_stride_w)[None, :]
        x = tl.load(x_base + x_offset, mask=(k < depth)[:, None] & inside[None, :], other=0.0)
        kernel_offset = tap // taps_w * kernel_stride_h + tap % taps_w * kernel_stride_w
        kernels = kernels_base + kernel_offset + m[:, None] * kernel_stride_m + k[None, :] * kernel_stride_k
        kernel_mask = (m < rows)[:, None] & (k < depth)[None, :]
        if EXPERTS == 0:
            kernel = tl.load(kernels, mask=kernel_mask, other=0.0)
        else:
            kernel = mix_tile(kernels, kernel_mask, kernel_stride_e, routing_ptr + example * EXPERTS, EXPERTS)
        y = multiply(kernel.to(x.dtype), x, y, PRECISION)
    y_offset = (group * rows + m)[:, None] * y_stride_c + (y_row * y_stride_h + y_column * y_stride_w)[None, :]
    y_mask = (m < rows)[:, None] & (pixel < y_h * y_w)[None, :]
    tl.store(y_ptr + example * y_stride_b + y_offset, y.to(y_ptr.dtype.element_ty), mask=y_mask)


def convolve(each: Pass, routing_weights: Tensor | None) -> None:
    """Fill the target of a pass.

    Args:
        each: `experts` are the layer's, or without routing weights one kernel per example, `[B, G, M, K, ...]`.
        routing_weights: `[B, E]`, fp32, contiguous, or `None`.
    """
    source, target, experts = each.source, each.target, each.experts
    if each.flat:
        source, target = (tensor.flatten(2)[:, :, None] for tensor in (source, target))
    batch, (_, groups, rows, depth, *taps) = len(source), experts.shape
    count = 0 if routing_weights is None else len(experts)
    pixels = target.shape[2] * target.shape[3]
    tile = tiles.convolution(batch, pixels, count, source.element_size(), mixed=count == 0)
    programs = triton.cdiv(pixels, tile.pixels) * triton.cdiv(batch, tile.examples) * triton.cdiv(rows, tile.rows)
    convolve_kernel[(programs * groups,)](
        *(source, experts, source if routing_weights is None else routing_weights, target),
        *(batch, rows, depth, *taps, *source.shape[2:], *target.shape[2:]),
        *(*each.step, *each.offset, *each.tap_offset),
        *(*source.stride(), *experts.stride(), *target.stride()),
        EXPERTS=count,
        FLAT=each.flat,
        PRECISION=precision(),
        EXAMPLES=tile.examples,
        ROWS=tile.rows,
        DEPTH=tile.depth,
        PIXELS=tile.pixels,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def precision() -> str:
    """Return how fp32 is multiplied: exactly, unless torch's own matrix products are allowed TF32."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
