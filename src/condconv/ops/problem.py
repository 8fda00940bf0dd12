"""What a choice among the implementations may depend on."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from condconv.ops.geometry import Geometry, output_memory_format
from condconv.ops.mixing import accumulation_dtype


class Problem(NamedTuple):
    """What a choice may depend on: shapes, device, layout, and what records the graph.

    `batch` is `None` while a graph is recorded (`torch.compile`, `torch.export`, `torch.jit.trace`): a choice that
    looked at it would fix the graph to one batch size. `overhangs` is whether a kernel reaches over more pixels than x
    has in a dimension (a transposed one: than the output has, which is the x of the convolution that it transposes),
    and `False` where a file is written that may leave the size open. `quantized` is the dtype of quantized experts,
    `None` for ordinary ones; `dtypes` are those of x and of the experts, quantized ones widened.
    """

    batch: int | None
    num_experts: int
    kernel_numel: int
    input_numel: int
    input_pixels: int
    output_numel: int
    output_pixels: int
    taps: int
    overhangs: bool
    groups: int
    depthwise: bool
    transposed: bool
    spatial: int
    dtypes: tuple[torch.dtype, ...]
    quantized: torch.dtype | None
    device: str
    channels_last: bool
    needs_grad: bool
    compiling: bool
    exporting: bool
    transforming: bool


def describe(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    pixels: int,
    *,
    quantized: bool = False,
    input_size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    traced: bool = False,
) -> Problem:
    """Return the `Problem` of a call whose arguments have been checked.

    Args:
        x: As in the operation, like all tensors.
        weight: Experts.
        routing_weights: Only whether they need a gradient matters.
        bias: As `routing_weights`.
        geometry: The convolution.
        pixels: Positions of the output.
        quantized: Whether the experts are quantized.
        input_size: Spatial size of x once it is padded; `None` for its own.
        dtype: What x is cast to under autocast; `None` for its own.
        traced: Whether `torch.jit.trace` records, which is to be exported to a file too.
    """
    dtype = dtype or x.dtype
    input_pixels = prod(x.shape[2:] if input_size is None else input_size)
    # Not is_exporting(), which the compiler of torch 2.11 takes for true in all that it compiles.
    compiling, exporting = torch.compiler.is_compiling(), traced or torch.compiler._is_exporting_flag
    tensors = (x, weight, routing_weights, bias)
    return Problem(
        batch=None if compiling or exporting else x.shape[0],
        num_experts=weight.shape[0],
        kernel_numel=prod(weight.shape[1:]),
        input_numel=x.shape[1] * input_pixels,
        input_pixels=input_pixels,
        output_numel=geometry.out_channels(weight) * pixels,
        output_pixels=pixels,
        taps=prod(weight.shape[3:]),
        overhangs=not exporting and _overhangs(geometry, weight.shape[3:], input_size or x.shape[2:]),
        groups=geometry.groups,
        depthwise=geometry.is_depthwise(weight),
        transposed=geometry.transposed,
        spatial=len(geometry.stride),
        dtypes=(dtype, accumulation_dtype(dtype) if quantized else weight.dtype),
        quantized=weight.dtype if quantized else None,
        device=x.device.type,
        channels_last=output_memory_format(x) != torch.contiguous_format,
        needs_grad=torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors),
        compiling=compiling or exporting,
        exporting=exporting,
        transforming=not compiling and not exporting and transforming(),
    )


def _overhangs(geometry: Geometry, kernel_size: Sequence[int], input_size: Sequence[int]) -> bool:
    sizes = geometry.output_size(input_size, kernel_size) if geometry.transposed else input_size
    reaches = [step * (taps - 1) + 1 for taps, step in zip(kernel_size, geometry.dilation, strict=True)]
    return any(reach > size for reach, size in zip(reaches, sizes, strict=True))


def transforming() -> bool:
    """Return whether a `torch.func` transform or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def why_not_two_dimensions(
    problem: Problem, computes: str, dtypes: tuple[torch.dtype, ...], most_taps: int
) -> str | None:
    """Return why kernels written for two dimensions cannot run, or `None`: what native and triton have in common.

    Args:
        problem: The call.
        computes: In words, what the kernels compute in.
        dtypes: The same, of x and of the experts.
        most_taps: Of a kernel.
    """
    other = [str(dtype).removeprefix("torch.") for dtype in problem.dtypes if dtype not in dtypes]
    if other:
        return f"its kernels compute {computes}, x or weight is {other[0]}"
    if problem.transposed or problem.spatial != 2:
        return "it has kernels for two-dimensional convolutions only, not transposed ones"
    if problem.taps > most_taps:
        return f"its kernels have at most {most_taps} taps, got {problem.taps}"
    return None
