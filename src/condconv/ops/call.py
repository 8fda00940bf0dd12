"""One call of the operation: its plan is looked up, and run directly if nothing watches."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._autograd import _profiler_enabled
from torch.autograd import profiler

from condconv.ops.autocast import autocast_disabled
from condconv.ops.call_plan import CallPlan
from condconv.ops.geometry import laid_out_as
from condconv.ops.mixing import accumulation_dtype
from condconv.ops.padding import pad
from condconv.ops.plan_cache import find_plan
from condconv.ops.quantized import widen
from condconv.ops.registration import mixed_conv, quantized_conv

_logger = logging.getLogger(__name__)
_ORDINARY = (Tensor, torch.nn.Parameter)


def compute(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    how: tuple[Any, ...],
) -> Tensor:
    """Compute the operation.

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
    plan = find_plan(x, weight, routing_weights, bias, weight_scale, how)
    if (
        plan.runner is not None
        and plan.as_given
        and not _logger.isEnabledFor(logging.DEBUG)
        and not _watched(plan, x, weight, routing_weights, bias, weight_scale)
    ):
        return plan.runner(x, weight, routing_weights, bias, weight_scale)
    return _compute(plan, x, weight, routing_weights, bias, weight_scale)


def _compute(
    plan: CallPlan,
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
) -> Tensor:
    """Compute what is planned."""
    if not torch.compiler.is_compiling() and _logger.isEnabledFor(logging.DEBUG):
        how_read = f", {weight.dtype} and widened first" if plan.widens else ""
        shapes = (tuple(x.shape), tuple(weight.shape))
        _logger.debug("%s for x %s, experts %s%s", plan.implementation.name, *shapes, how_read)
    if plan.as_given:
        return _run(plan, x, weight, routing_weights, bias, weight_scale)
    if plan.outside:
        x = pad(x, plan.outside, plan.padding_mode)
    if plan.cast is not None:
        x = x.to(plan.cast)  # experts stay as they are: mixed first, then rounded
    with autocast_disabled(x.device) if plan.autocasting else nullcontext():
        if plan.widens:
            geometry, wide = plan.geometry, accumulation_dtype(x.dtype)
            weight, weight_scale = widen(weight, weight_scale, geometry.groups, geometry.transposed, wide), None
        return _run(plan, x, weight, routing_weights, bias, weight_scale)


def _run(
    plan: CallPlan,
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
) -> Tensor:
    """Compute what is planned, in the dtype of x."""
    if plan.silent and not _watched(plan, x, weight, routing_weights, bias, weight_scale):
        if plan.runner is None:
            tensors = (x, weight, routing_weights, bias, weight_scale)
            plan.runner = plan.implementation.bind(*tensors, plan.geometry)
        return plan.runner(x, weight, routing_weights, bias, weight_scale)
    implementation, geometry = plan.implementation, plan.geometry
    if implementation.backward is None:
        return laid_out_as(implementation.forward(x, weight, routing_weights, bias, geometry), x)
    if plan.plain:
        return implementation.forward(x, weight, routing_weights, bias, geometry)
    if plan.quantized:
        return quantized_conv(x, weight, routing_weights, bias, weight_scale, geometry, implementation.name)
    return mixed_conv(x, weight, routing_weights, bias, geometry, implementation.name)


def _watched(
    plan: CallPlan,
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
) -> bool:
    """Return whether something wants to see the registered operator, and not only what it returns.

    That is a mode, a profiler, or a kind of tensor that PyTorch resolves on the way to an operator (subclasses, and for
    what reads memory itself views whose negation is pending). Otherwise a call without gradients runs at once: the way
    to an operator written in Python takes longer than many a small layer. Only an `ExecutionTraceObserver` without a
    profiler goes unnoticed.
    """
    return (
        _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or _profiler_enabled()
        or profiler._is_profiler_enabled  # of other threads too
        or type(x) not in _ORDINARY
        or type(weight) not in _ORDINARY
        or type(routing_weights) not in _ORDINARY
        or (bias is not None and type(bias) not in _ORDINARY)
        or (weight_scale is not None and type(weight_scale) not in _ORDINARY)
        or (plan.implementation.reads_memory and _pending(x, weight, routing_weights, bias, weight_scale))
    )


def _pending(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None
) -> bool:
    """Return whether a tensor's numbers are not those in memory."""
    return (
        x.is_neg()
        or weight.is_neg()
        or routing_weights.is_neg()
        or (bias is not None and (bias.is_neg() or bias._is_zerotensor()))
        or (weight_scale is not None and (weight_scale.is_neg() or weight_scale._is_zerotensor()))
        or x._is_zerotensor()
        or weight._is_zerotensor()
        or routing_weights._is_zerotensor()
    )
