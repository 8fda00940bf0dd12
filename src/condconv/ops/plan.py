"""What a call does: checked and chosen once for all calls that look the same, then looked up.

A call costs a few microseconds of Python beside the convolution, and a network has dozens of them: checking the same
shapes again each time would take longer than many a small layer.
"""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condconv.ops import selection, validation
from condconv.ops.autocast import autocast_dtype
from condconv.ops.geometry import Geometry
from condconv.ops.native import library
from condconv.ops.padding import Padding, resolve_padding, split_padding

Size = int | Sequence[int]
_MOST_PLANS = 4096  # a plan is one or two kilobytes; inputs of ever new sizes must not fill the memory


class How(NamedTuple):
    """What a user says beside the tensors: the arguments of `cond_conv2d`, or of `cond_conv_transpose2d`."""

    dims: int
    impl: str
    stride: Size = 1
    padding: Padding = 0
    dilation: Size = 1
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: Size = 0


class Plan(NamedTuple):
    """What a call does.

    Attributes:
        geometry: The convolution, with the zeros it pads by itself.
        outside: What `torch.nn.functional.pad` adds before; empty for nothing.
        cast: The dtype that autocast wants x in; `None` for its own.
        autocasting: Whether autocast is on.
        impl: The implementation that runs.
        compact: Whether the experts are compact.
        plain: Whether it runs as plain torch functions and not as the registered operator.
        silent: Whether the operator has nothing to do but to run: no gradient, no graph, and the batch not empty.
    """

    geometry: Geometry
    outside: tuple[int, ...]
    cast: torch.dtype | None
    autocasting: bool
    impl: str
    compact: bool
    plain: bool
    silent: bool


_plans: dict[Any, Plan] = {}


def find_plan(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None, how: How
) -> Plan:
    """Return the plan of a call.

    Args:
        x: `[B, C, *S]`.
        weight: Experts, as in `cond_conv2d` or `cond_conv_transpose2d`.
        routing_weights: `[B, E]`.
        bias: `[E, O]`, or `None`.
        weight_scale: `[E, O]` for int8 experts, or `None`.
        how: The other arguments.

    Raises:
        TypeError: As in `cond_conv2d`.
        ValueError: As in `cond_conv2d`.
        RuntimeError: As in `cond_conv2d`.
        UsageError: As in `cond_conv2d`.
    """
    tensors = (x, weight, routing_weights, bias, weight_scale)
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return _make_plan(*tensors, how)
    try:
        # All that the checks and the choice look at; the bytes, since 1, 1.0 and True are equal and not all allowed.
        key = (
            marshal.dumps(tuple(how), 2),  # type: ignore[arg-type]
            x.stride(),
            *(x.shape, x.dtype, x.device),
            *(weight.shape, weight.dtype, weight.device),
            *(routing_weights.shape, routing_weights.dtype, routing_weights.device),
            None if bias is None else (bias.shape, bias.dtype, bias.device),
            None if weight_scale is None else (weight_scale.shape, weight_scale.dtype, weight_scale.device),
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors),
            autocast_dtype(x.device),
            selection.transforming(),
            library.WHY_NOT,
        )
        plan = _plans.get(key)
    except (AttributeError, TypeError, ValueError):  # not tensors, not numbers, or symbolic sizes: not looked up
        return _make_plan(*tensors, how)
    if plan is None:
        plan = _make_plan(*tensors, how)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan


def _make_plan(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None, how: How
) -> Plan:
    validation.check_tensors(x, weight, routing_weights, bias)
    layout = "[E, C, O/groups, *kernel]" if how.transposed else "[E, O, C/groups, *kernel]"
    validation.check_rank(weight, how.dims, layout)
    validation.check_shapes(x, weight, routing_weights, bias, how.groups, how.transposed)
    geometry, outside = _resolve(x, weight, how)
    added = [sum(outside[2 * dim : 2 * dim + 2]) for dim in reversed(range(how.dims))]
    inside = tuple(size + extra for size, extra in zip(x.shape[2:], added, strict=True))
    size = geometry.output_size(inside, weight.shape[3:])
    validation.check_output_size(size, inside, weight.shape[3:], how.transposed)
    channels = geometry.out_channels(weight)
    compact = validation.check_compact(x, weight, routing_weights, bias, weight_scale, channels)
    autocasting = autocast_dtype(x.device)
    cast = None if x.dtype == torch.float64 else autocasting  # as torch's own convolutions do
    problem = selection.describe(
        *(x, weight, routing_weights, bias, geometry, prod(size)), compact=compact, input_size=inside, dtype=cast
    )
    impl = selection.resolve(how.impl, problem)
    plain = selection.must_be_plain(problem, impl)
    tracing = problem.compiling or torch._C._get_tracing_state() is not None
    silent = not problem.needs_grad and not tracing and problem.batch != 0
    return Plan(geometry, outside, cast, autocasting is not None, impl, compact, plain, silent)


def _resolve(x: Tensor, weight: Tensor, how: How) -> tuple[Geometry, tuple[int, ...]]:
    """Return the convolution as implementations take it, and what is padded before."""
    stride = validation.to_tuple("stride", how.stride, how.dims, 1)
    if how.transposed:
        padding = validation.to_tuple("padding", how.padding, how.dims, 0)  # type: ignore[arg-type]
        dilation = validation.to_tuple("dilation", how.dilation, how.dims, 1)
        output_padding = validation.to_tuple("output_padding", how.output_padding, how.dims, 0)
        geometry = Geometry(stride, padding, dilation, how.groups, True, output_padding)
        validation.check_output_padding(geometry)
        return geometry, ()
    dilation = validation.to_tuple("dilation", how.dilation, how.dims, 1)
    validation.check_padding(how.padding, how.padding_mode, stride)
    amounts = resolve_padding(how.padding, x.shape[2:], weight.shape[3:], stride, dilation)
    zeros, outside = split_padding(amounts, how.padding_mode)
    return Geometry(stride, zeros, dilation, how.groups), outside
