"""What a call does: checked and chosen once for all calls with the same shapes and types, then looked up.

A call costs a few microseconds of Python besides the convolution, and a network has dozens of them: checking the same
shapes each time would take longer than many small layers.
"""

from __future__ import annotations

import marshal
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled

from condconv.ops import arguments, problem, rules, validation
from condconv.ops.arguments import How, to_tuple
from condconv.ops.autocast import autocast_dtype
from condconv.ops.geometry import Geometry
from condconv.ops.implementation import Implementation, Runner
from condconv.ops.implementations import check_impl
from condconv.ops.native import library
from condconv.ops.padding import resolve_padding, split_padding
from condconv.ops.problem import transforming
from condconv.ops.quantized import check_quantized
from condconv.ops.recording import tracing, untraced

_MOST_PLANS = 4096  # a plan is a few kilobytes; bounds memory when input sizes keep changing


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


_plans: dict[Any, CallPlan] = {}
_NO_KEY = (AttributeError, TypeError, ValueError, RuntimeError)  # of what is not a tensor, or has symbolic sizes


def find_plan(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    how: tuple[Any, ...],
) -> CallPlan:
    """Return the plan of a call.

    Args:
        x: `[B, C, *S]`.
        weight: Experts, as in `cond_conv2d` or `cond_conv_transpose2d`.
        routing_weights: `[B, E]`.
        bias: `[E, O]`, or `None`.
        weight_scale: `[E, O]` for int8 experts, or `None`.
        how: The fields of `How`.

    Raises:
        UsageError: As in `cond_conv2d`.
    """
    if torch.compiler.is_compiling():  # or exporting
        return _make_plan(x, weight, routing_weights, bias, weight_scale, _plain(how))
    if tracing():
        with untraced():
            return _make_plan(x, weight, routing_weights, bias, weight_scale, _plain(how), True)
    try:
        plan = _plans.get(_key(x, weight, routing_weights, bias, weight_scale, how))
    except _NO_KEY:
        plan = None
    return _find_or_make(x, weight, routing_weights, bias, weight_scale, how) if plan is None else plan


def _key(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, scale: Tensor | None, how: tuple[Any, ...]
) -> Any:
    """Return all that the checks, the choice and the runner look at; raises one of `_NO_KEY` if that cannot be told.

    What has strides is dense.
    """
    needs_grad = torch.is_grad_enabled() and (
        x.requires_grad
        or weight.requires_grad
        or routing_weights.requires_grad
        or (bias is not None and bias.requires_grad)
        or (scale is not None and scale.requires_grad)
    )
    on_cpu = x.is_cpu and weight.is_cpu and routing_weights.is_cpu  # quicker than to compare devices
    # fmt: off
    return (
        marshal.dumps(how, 2),  # the bytes, since 1, 1.0 and True are equal
        on_cpu or (x.device, weight.device, routing_weights.device),
        x.shape, x.stride(), x.dtype,
        weight.shape, weight.stride(), weight.dtype,
        routing_weights.shape, routing_weights.stride(), routing_weights.dtype,
        None if bias is None else (bias.shape, bias.stride(), bias.dtype, bias.is_cpu or bias.device),
        None if scale is None else (scale.shape, scale.stride(), scale.dtype, scale.is_cpu or scale.device),
        needs_grad,
        autocast_dtype(x.device) if _is_any_autocast_enabled() else None,
        transforming(),
        library.WHY_NOT,
    )
    # fmt: on


def _plain(how: tuple[Any, ...]) -> How:
    checked = arguments.normalised(How(*how))
    return checked._replace(impl=check_impl(checked.impl))


def _find_or_make(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    given: tuple[Any, ...],
) -> CallPlan:
    """Return the plan of a call whose arguments have not been seen as they are.

    Plans are kept by plain arguments alone: to `marshal`, a number of numpy's is the bytes it consists of, which other
    arguments may consist of too.
    """
    tensors, how = (x, weight, routing_weights, bias, weight_scale), _plain(given)
    try:
        key = _key(*tensors, tuple(how))
        plan = _plans.get(key)
    except _NO_KEY:
        return _make_plan(*tensors, how)
    if plan is None:
        plan = _make_plan(*tensors, how)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan


def _make_plan(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    how: How,
    traced: bool = False,
) -> CallPlan:
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
    stride = to_tuple("stride", how.stride, how.dims, 1)
    dilation = to_tuple("dilation", how.dilation, how.dims, 1)
    if how.transposed:
        padding = to_tuple("padding", how.padding, how.dims, 0)
        output_padding = to_tuple("output_padding", how.output_padding, how.dims, 0)
        geometry = Geometry(stride, padding, dilation, how.groups, True, output_padding)
        validation.check_output_padding(geometry)
        return geometry, ()
    amounts = resolve_padding(how.padding, x.shape[2:], weight.shape[3:], stride, dilation)
    validation.check_amounts(amounts, x.shape[2:], how.padding_mode)
    zeros, outside = split_padding(amounts, how.padding_mode)
    return Geometry(stride, zeros, dilation, how.groups), outside
