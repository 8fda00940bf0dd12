"""Plans are kept: checked and chosen once for all calls with the same shapes and types, then looked up.

A call costs a few microseconds of Python besides the convolution, and a network has dozens of them: checking the same
shapes each time would take longer than many small layers.
"""

from __future__ import annotations

import marshal
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _is_any_autocast_enabled

from condconv.ops import arguments
from condconv.ops.arguments import How
from condconv.ops.autocast import autocast_dtype
from condconv.ops.call_plan import CallPlan, make_plan
from condconv.ops.implementations import check_impl
from condconv.ops.native import library
from condconv.ops.problem import transforming
from condconv.ops.recording import untraced

_MOST_PLANS = 4096  # a plan is a few kilobytes; bounds memory when input sizes keep changing
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
        return make_plan(x, weight, routing_weights, bias, weight_scale, _plain(how))
    if _get_tracing_state() is not None:
        with untraced():
            return make_plan(x, weight, routing_weights, bias, weight_scale, _plain(how), True)
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
        return make_plan(*tensors, how)
    if plan is None:
        plan = make_plan(*tensors, how)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan
