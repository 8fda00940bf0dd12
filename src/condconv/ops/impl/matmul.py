"""Batched matrix products: one product per example, of its kernel and its patches.

A 1x1 kernel needs no patches; a depthwise one is a weighted sum of k*k shifted inputs. Nothing depends on the
value of the batch size, so this form is the one for `torch.compile` and `torch.export` with a dynamic batch.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, Output, output_memory_format
from condconv.ops.implementation import Implementation, Runner
from condconv.ops.mixing import accumulation_dtype, bind_bias, bind_mix
from condconv.ops.patches import extract_patches, fold_patches, tap_views, zero_pad
from condconv.ops.problem import Problem
from condconv.ops.recompute import MixedKernels
from condconv.ops.recording import plain_shape


def apply(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Convolve example b of x `[B, C, *S]` with kernel b of `[B, O, C/G, *K]`; returns `[B, O, *S']`."""
    if _is_depthwise(kernels, geometry):
        return _apply_depthwise(x, kernels, geometry)
    kernel_size = plain_shape(kernels)[3:]
    output_size = geometry.output_size(x.shape[2:], kernel_size)
    matrices = _matrices(kernels, geometry)
    if geometry.transposed:
        columns = _product(matrices.transpose(-2, -1), _channels(x, geometry), x)  # [B, G, O/G * T, N]
        return fold_patches(_ungroup(columns, x.shape[2:]), kernel_size, output_size, geometry)
    columns = _channels(extract_patches(x, kernel_size, geometry), geometry)
    return _ungroup(_product(matrices, columns, x), output_size)


def apply_backward(
    grad_output: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients for x and for the kernels, `None` if not needed."""
    if _is_depthwise(kernels, geometry):
        return _apply_depthwise_backward(grad_output, x, kernels, geometry, needs)
    kernel_size = plain_shape(kernels)[3:]
    matrices = _matrices(kernels, geometry)
    grad_x = grad_kernels = None
    if geometry.transposed:
        columns = _channels(extract_patches(grad_output, kernel_size, geometry), geometry)
        if needs[0]:
            grad_x = _ungroup(_product(matrices, columns, x), x.shape[2:])
        if needs[1]:
            grad_kernels = (_channels(x, geometry) @ columns.transpose(-2, -1)).reshape(kernels.shape)
        return grad_x, grad_kernels
    grad = _channels(grad_output, geometry)
    output_size = grad_output.shape[2:]
    if needs[0]:
        columns = _ungroup(_product(matrices.transpose(-2, -1), grad, x), output_size)
        grad_x = fold_patches(columns, kernel_size, x.shape[2:], geometry)
    if needs[1]:
        patches = _channels(extract_patches(x, kernel_size, geometry), geometry)
        grad_kernels = (grad @ patches.transpose(-2, -1)).reshape(kernels.shape)
    return grad_x, grad_kernels


def _channels(x: Tensor, geometry: Geometry) -> Tensor:
    """View `[B, C, *S]` as matrices of a group's channels by pixels: `[B, G, C/G, N]`."""
    return x.flatten(2).unflatten(1, (geometry.groups, x.shape[1] // geometry.groups))


def _matrices(kernels: Tensor, geometry: Geometry) -> Tensor:
    """View `[B, M, J, *K]` as matrices `[B, G, M/G, J * T]`."""
    return kernels.flatten(2).unflatten(1, (geometry.groups, kernels.shape[1] // geometry.groups))


def _ungroup(matrices: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """View `[B, G, R, N]` as `[B, G * R, *size]`."""
    return matrices.flatten(1, 2).unflatten(2, size)


def _product(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Multiply so that the result lies in memory as x does: channels innermost where x is channels_last."""
    if output_memory_format(x) == torch.contiguous_format:
        return left @ right
    return (right.transpose(-2, -1) @ left.transpose(-2, -1)).transpose(-2, -1)


def _is_depthwise(kernels: Tensor, geometry: Geometry) -> bool:
    return not geometry.transposed and geometry.is_depthwise(kernels)


def _tap_weights(kernels: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return for each tap the weights `[B, O, 1, ...]` of an `[B, O, 1, *K]` depthwise kernel."""
    spatial = (None,) * (kernels.dim() - 3)
    return tuple(tap[(..., *spatial)] for tap in kernels.to(dtype).flatten(2).unbind(2))


def _apply_depthwise(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    wide = accumulation_dtype(x.dtype)
    per_channel = plain_shape(kernels)[1] // plain_shape(x)[1]
    source = x if per_channel == 1 else x.repeat_interleave(per_channel, dim=1)
    views = tap_views(zero_pad(source, geometry), plain_shape(kernels)[3:], geometry)
    terms = (view * weight for view, weight in zip(views, _tap_weights(kernels, wide), strict=True))
    return sum(terms, start=next(terms)).to(x.dtype)


def _apply_depthwise_backward(
    grad_output: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    wide = accumulation_dtype(x.dtype)
    per_channel = plain_shape(kernels)[1] // plain_shape(x)[1]
    kernel_size = plain_shape(kernels)[3:]
    grad = grad_output.to(wide)
    grad_x = grad_kernels = None
    if needs[0]:
        columns = torch.stack([grad * weight for weight in _tap_weights(kernels, wide)], dim=2)
        columns = columns.unflatten(1, (x.shape[1], per_channel)).sum(2).flatten(1, 2)  # [B, C * T, *S']
        grad_x = fold_patches(columns, kernel_size, x.shape[2:], geometry).to(x.dtype)
    if needs[1]:
        source = x if per_channel == 1 else x.repeat_interleave(per_channel, dim=1)
        views = tap_views(zero_pad(source, geometry), kernel_size, geometry)
        taps = [(grad * view).flatten(2).sum(2) for view in views]
        grad_kernels = torch.stack(taps, dim=2).reshape(kernels.shape).to(kernels.dtype)
    return grad_x, grad_kernels


def prepare(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    geometry: Geometry,
) -> Runner | None:
    """Return what computes calls that look like this one, without gradients, if they are plain products of x."""
    moved = any(geometry.padding) or any(step != 1 for step in geometry.stride)
    if moved or geometry.transposed or geometry.is_depthwise(weight) or prod(weight.shape[3:]) > 1:
        return None
    if not x.is_contiguous():
        return None
    mix, output = bind_mix(weight, routing_weights, x.dtype), Output.of(x, weight, geometry)
    shift = bind_bias(bias, routing_weights, output.shape, x.dtype)
    products = x.shape[0] * geometry.groups
    outputs, channels, size = output.shape[1] // geometry.groups, weight.shape[2], prod(output.shape[2:])
    kernels, pixels, outcome = (products, outputs, channels), (products, channels, size), (products, outputs, size)

    def run(
        x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None
    ) -> Tensor:
        y = x.new_empty(output.shape)  # filled through a view, so that it is none itself
        torch.bmm(mix(weight, routing_weights).view(kernels), x.view(pixels), out=y.view(outcome))
        return y if bias is None else shift(y, bias, routing_weights)

    return run


def why_not(problem: Problem) -> str | None:
    """Return `None`: matrix products run anywhere."""
    return None


_ALL = MixedKernels(apply, apply_backward)
MATMUL = Implementation("matmul", why_not, _ALL.forward, _ALL.backward, prepare, fusible=True)
