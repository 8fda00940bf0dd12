"""What a call does: its arguments are checked, and an implementation is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from condconv.ops import problem, rules, validation
from condconv.ops.arguments import How
from condconv.ops.autocast import autocast_dtype
from condconv.ops.geometry import Geometry
from condconv.ops.implementation import Implementation, Runner
from condconv.ops.padding import resolve_padding, split_padding
from condconv.ops.quantized import check_quantized


@dataclass(slots=True)
class CallPlan:
    """What a call does.

    Attributes:
        geometry: The convolution, with the zeros it pads by itself.
        outside: What `torch.nn.functional.pad` adds before; empty for nothing.
        padding_mode: How.
        cast: The dtype that autocast wants x in; `None` for its own.
        autocasting: Whether autocast is on.
        implementation: What runs.
        quantized: Whether the experts are quantized, and read as they are.
        widens: Whether they are quantized, and widened first.
        as_given: Whether nothing is done with the arguments first.
        plain: Whether it runs as plain torch functions and not as the registered operator.
        silent: Whether the operator has nothing to do but to run: no gradient, no graph, and the batch not empty.
        runner: What computes silent calls; `None` until there was one.
    """

    geometry: Geometry
    outside: tuple[int, ...]
    padding_mode: str
    cast: torch.dtype | None
    autocasting: bool
    implementation: Implementation
    quantized: bool
    widens: bool
    as_given: bool
    plain: bool
    silent: bool
    runner: Runner | None = None


def make_plan(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    how: How,
    traced: bool = False,
) -> CallPlan:
    """Check the tensors of a call, choose an implementation, and return what the call does.

    Args:
        x: `[B, C, *S]`.
        weight: Experts, as in `cond_conv2d` or `cond_conv_transpose2d`.
        routing_weights: `[B, E]`.
        bias: `[E, O]`, or `None`.
        weight_scale: `[E, O]` for int8 experts, or `None`.
        how: The other arguments, checked and plain.
        traced: Whether `torch.jit.trace` records.

    Raises:
        UsageError: As in `cond_conv2d`.
    """
    validation.check_tensors(x, weight, routing_weights, bias, weight_scale)
    validation.check_shapes(x, weight, routing_weights, bias, how.dims, how.groups, how.transposed)
    geometry, outside = _resolve(x, weight, how)
    added = [sum(outside[2 * dim : 2 * dim + 2]) for dim in reversed(range(how.dims))]
    inside = tuple(size + extra for size, extra in zip(x.shape[2:], added, strict=True))
    size = geometry.output_size(inside, weight.shape[3:])
    validation.check_output_size(size, inside, weight.shape[3:], how.transposed)
    channels = geometry.out_channels(weight)
    quantized = check_quantized(x, weight, routing_weights, bias, weight_scale, channels)
    autocasting = autocast_dtype(x.device)
    cast = None if x.dtype == torch.float64 else autocasting  # as torch's own convolutions do
    call = problem.describe(
        *(x, weight, routing_weights, bias, geometry, prod(size)),
        quantized=quantized,
        input_size=inside,
        dtype=cast,
        traced=traced,
    )
    implementation = rules.resolve(how.impl, call)
    plain = implementation.must_be_plain(call)
    silent = not (call.needs_grad or call.compiling or plain or call.batch == 0)
    widens = quantized and not implementation.reads_quantized
    as_given = len(outside) == 0 and not widens and autocasting is None
    return CallPlan(
        geometry=geometry,
        outside=outside,
        padding_mode=how.padding_mode,
        cast=cast,
        autocasting=autocasting is not None,
        implementation=implementation,
        quantized=quantized and not widens,
        widens=widens,
        as_given=as_given,
        plain=plain,
        silent=silent,
    )


def _resolve(x: Tensor, weight: Tensor, how: How) -> tuple[Geometry, tuple[int, ...]]:
    """Return the convolution as implementations take it, and what is padded before."""
    stride, dilation = _spread(how.stride, how.dims), _spread(how.dilation, how.dims)
    if how.transposed:
        padding, output_padding = _spread(how.padding, how.dims), _spread(how.output_padding, how.dims)
        geometry = Geometry(stride, padding, dilation, how.groups, True, output_padding)
        validation.check_output_padding(geometry)
        return geometry, ()
    amounts = resolve_padding(how.padding, x.shape[2:], weight.shape[3:], stride, dilation)
    validation.check_amounts(amounts, x.shape[2:], how.padding_mode)
    zeros, outside = split_padding(amounts, how.padding_mode)
    return Geometry(stride, zeros, dilation, how.groups), outside


def _spread(size: Any, dims: int) -> tuple[int, ...]:
    """Return a checked size with one int per spatial dimension."""
    return (size,) * dims if isinstance(size, int) else size
