"""The public operations: check, choose an implementation, call it. No maths."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import profiler

from condconv.ops import recompute, validation
from condconv.ops.arguments import How, Size
from condconv.ops.autocast import autocast_disabled
from condconv.ops.call_plan import CallPlan, find_plan
from condconv.ops.geometry import laid_out_as
from condconv.ops.impl import mix_outputs, reference
from condconv.ops.mixing import accumulation_dtype
from condconv.ops.padding import Padding, pad
from condconv.ops.quantized import widen
from condconv.ops.recording import plain_shape
from condconv.ops.registration import mixed_conv, quantized_conv

_logger = logging.getLogger(__name__)
_PLAIN = {"reference": reference.forward, "mix_outputs": mix_outputs.forward}
_ORDINARY = (Tensor, torch.nn.Parameter)


def cond_conv1d(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    impl: str = "auto",
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Convolve each sequence with its own mixture of the experts; see `cond_conv2d`.

    Args:
        x: `[B, C, L]`.
        weight: Experts `[E, O, C/groups, K]`.
        routing_weights: `[B, E]`.
        bias: Per-expert biases `[E, O]`, or `None`.
        stride: As in `cond_conv2d`.
        padding: As in `cond_conv2d`.
        dilation: As in `cond_conv2d`.
        groups: As in `cond_conv2d`.
        padding_mode: As in `cond_conv2d`.
        impl: As in `cond_conv2d`.
        weight_scale: As in `cond_conv2d`.

    Returns:
        `[B, O, L']`.
    """
    how = How(1, impl, stride, padding, dilation, groups, padding_mode)
    return _call(x, weight, routing_weights, bias, weight_scale, how)


def cond_conv2d(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    impl: str = "auto",
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Convolve each example with its own weighted sum of the experts.

    `out[b] = conv2d(x[b], sum_e r[b, e] * weight[e]) + sum_e r[b, e] * bias[e]`

    Args:
        x: `[B, C, H, W]`, floating point; contiguous, channels_last or any strides. B may be 0.
        weight: Experts `[E, O, C/groups, KH, KW]` in the dtype of x (any float dtype under autocast). For inference
            also quantized: bfloat16 for another x, or int8 with `weight_scale`. `"native"` reads them as they are;
            every other implementation widens them first, at each call.
        routing_weights: `[B, E]`, any float dtype; used in fp32 (fp64 for fp64).
        bias: Per-expert biases `[E, O]`, mixed with the same weights, or `None`.
        stride: One int, or one for each spatial dimension.
        padding: Pixels on both sides (int, or one for each dimension), `"valid"` (none), `"same"` (stride 1
            only, as torch defines it) or `"tf_same"`: TensorFlow's SAME, `ceil(size / stride)` outputs,
            asymmetric where the total is odd.
        dilation: One int, or one for each spatial dimension.
        groups: Number of groups, as in `torch.nn.functional.conv2d`; C for a depthwise convolution.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        impl: How, never what: `"auto"` (by shape, batch, number of experts, device, layout and whether gradients
            are needed; the choice is logged at DEBUG), `"reference"`, `"mix_outputs"`, `"grouped"`,
            `"matmul"`, `"loop"`, `"native"` (CPU) or `"triton"` (GPU; "auto" does not take it yet).
        weight_scale: `[E, O]`, fp32, for int8 experts: W = weight_scale * weight for each expert and output channel.
            `None` for all others.

    Returns:
        `[B, O, H', W']` in the dtype of x (the autocast dtype under autocast), channels_last where x is.
        Sums over experts and taps are kept in fp32 or wider.

    Raises:
        UsageError: An argument does not fit: a tensor's kind, dtype, device or shape, a size, a name, an `impl` that
            cannot run this call, or quantized experts with an argument that needs a gradient. The message names the
            argument, the rule, what was given and a remedy. It is a `ValueError`.

    Source:
        CondConv, section 3 (arXiv:1904.04971).

    Example:
        >>> x, experts, r = torch.randn(2, 3, 8, 8), torch.randn(4, 6, 3, 3, 3), torch.rand(2, 4)
        >>> cond_conv2d(x, experts, r, padding=1).shape
        torch.Size([2, 6, 8, 8])
    """
    how = How(2, impl, stride, padding, dilation, groups, padding_mode)
    return _call(x, weight, routing_weights, bias, weight_scale, how)


def cond_conv3d(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    impl: str = "auto",
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Convolve each volume with its own mixture of the experts; see `cond_conv2d`.

    Args:
        x: `[B, C, D, H, W]`.
        weight: Experts `[E, O, C/groups, KD, KH, KW]`.
        routing_weights: `[B, E]`.
        bias: Per-expert biases `[E, O]`, or `None`.
        stride: As in `cond_conv2d`.
        padding: As in `cond_conv2d`.
        dilation: As in `cond_conv2d`.
        groups: As in `cond_conv2d`.
        padding_mode: As in `cond_conv2d`.
        impl: As in `cond_conv2d`.
        weight_scale: As in `cond_conv2d`.

    Returns:
        `[B, O, D', H', W']`, channels_last_3d where x is.
    """
    how = How(3, impl, stride, padding, dilation, groups, padding_mode)
    return _call(x, weight, routing_weights, bias, weight_scale, how)


def cond_conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    impl: str = "auto",
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Apply a transposed convolution with example-dependent kernels; see `cond_conv_transpose2d`.

    Args:
        x: `[B, C, L]`.
        weight: Experts `[E, C, O/groups, K]`.
        routing_weights: `[B, E]`.
        bias: Per-expert biases `[E, O]`, or `None`.
        stride: As in `torch.nn.functional.conv_transpose1d`.
        padding: Pixels taken off both ends of the output.
        output_padding: Pixels added after the output; less than stride or dilation.
        groups: Number of groups.
        dilation: As in `torch.nn.functional.conv_transpose1d`.
        impl: As in `cond_conv2d`.
        weight_scale: As in `cond_conv2d`.

    Returns:
        `[B, O, L']`.
    """
    how = How(1, impl, stride, padding, dilation, groups, "zeros", True, output_padding)
    return _call(x, weight, routing_weights, bias, weight_scale, how)


def cond_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    impl: str = "auto",
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Apply to each example the transposed convolution of its own weighted sum of the experts.

    Args:
        x: `[B, C, H, W]`.
        weight: Experts `[E, C, O/groups, KH, KW]`, each as `torch.nn.functional.conv_transpose2d` takes it.
        routing_weights: `[B, E]`.
        bias: Per-expert biases `[E, O]`, or `None`.
        stride: One int, or one for each spatial dimension.
        padding: Pixels taken off both ends of the output; an int, or one for each dimension.
        output_padding: Pixels added after the output; less than stride or dilation.
        groups: Number of groups.
        dilation: One int, or one for each spatial dimension.
        impl: As in `cond_conv2d`.
        weight_scale: As in `cond_conv2d`.

    Returns:
        `[B, O, H', W']`, channels_last where x is.

    Raises:
        UsageError: As in `cond_conv2d`.
    """
    how = How(2, impl, stride, padding, dilation, groups, "zeros", True, output_padding)
    return _call(x, weight, routing_weights, bias, weight_scale, how)


def cond_conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    impl: str = "auto",
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Apply a transposed convolution with example-dependent kernels; see `cond_conv_transpose2d`.

    Args:
        x: `[B, C, D, H, W]`.
        weight: Experts `[E, C, O/groups, KD, KH, KW]`.
        routing_weights: `[B, E]`.
        bias: Per-expert biases `[E, O]`, or `None`.
        stride: As in `cond_conv_transpose2d`.
        padding: As in `cond_conv_transpose2d`.
        output_padding: As in `cond_conv_transpose2d`.
        groups: Number of groups.
        dilation: As in `cond_conv_transpose2d`.
        impl: As in `cond_conv2d`.
        weight_scale: As in `cond_conv2d`.

    Returns:
        `[B, O, D', H', W']`, channels_last_3d where x is.
    """
    how = How(3, impl, stride, padding, dilation, groups, "zeros", True, output_padding)
    return _call(x, weight, routing_weights, bias, weight_scale, how)


def cond_linear(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    *,
    impl: str = "auto",
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Apply to each example the linear map of its own weighted sum of the experts.

    Args:
        x: `[B, ..., C]`; all rows of an example share its routing weights.
        weight: Experts `[E, O, C]`.
        routing_weights: `[B, E]`.
        bias: Per-expert biases `[E, O]`, or `None`.
        impl: As in `cond_conv2d`.
        weight_scale: As in `cond_conv2d`.

    Returns:
        `[B, ..., O]` in the dtype of x.

    Raises:
        UsageError: As in `cond_conv2d`.

    Example:
        >>> cond_linear(torch.randn(2, 5), torch.randn(4, 3, 5), torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """
    validation.check_rows(x, weight)
    rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]  # [B, N, C]
    empty = 0 in plain_shape(x)[1:-1]
    if empty:
        rows = F.pad(rows, (0, 0, 0, 1))  # one row, dropped again: all is checked, and all gradients are zeros
    # Two dimensions, as the compiled kernels have; channels are innermost, as they like it.
    columns, kernels = rows.transpose(-2, -1)[..., None], weight[..., None, None]
    y = (
        _call(columns, kernels, routing_weights, bias, weight_scale, How(2, impl))
        .flatten(2)
        .transpose(-2, -1)
        .contiguous()
    )
    y = y[:, :0] if empty else y
    return y.unflatten(1, x.shape[1:-1]) if x.dim() > 2 else y[:, 0]


def _call(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None, how: How
) -> Tensor:
    plan = find_plan(x, weight, routing_weights, bias, weight_scale, how)
    if plan.outside:
        x = pad(x, plan.outside, how.padding_mode)
    if plan.cast is not None:
        x = x.to(plan.cast)  # experts stay as they are: mixed first, then rounded
    if not torch.compiler.is_compiling() and _logger.isEnabledFor(logging.DEBUG):
        how_read = f", {weight.dtype} and widened first" if plan.quantized and plan.impl != "native" else ""
        _logger.debug("%s for x %s, experts %s%s", plan.impl, tuple(x.shape), tuple(weight.shape), how_read)
    if not plan.autocasting:
        return _run(plan, x, weight, routing_weights, bias, weight_scale)
    with autocast_disabled(x.device):
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
    geometry, impl = plan.geometry, plan.impl
    direct = plan.silent and not _watched(x, weight, routing_weights, bias, weight_scale)
    if plan.quantized and impl == "native":
        read = recompute.run_quantized if direct else quantized_conv
        return read(x, weight, routing_weights, bias, weight_scale, geometry, impl)
    if plan.quantized:
        weight = widen(weight, weight_scale, geometry.groups, geometry.transposed, accumulation_dtype(x.dtype))
    if impl in _PLAIN:
        return laid_out_as(_PLAIN[impl](x, weight, routing_weights, bias, geometry), x)
    run = recompute.forward if plan.plain else recompute.run if direct else mixed_conv
    return run(x, weight, routing_weights, bias, geometry, impl)


def _watched(*tensors: Tensor | None) -> bool:
    """Return whether something wants to see the registered operator, and not only what it returns.

    That is a mode, a tracer, a profiler, or a kind of tensor that PyTorch resolves on the way to an operator
    (subclasses, and views whose negation is pending). Otherwise a call without gradients runs at once: the way to an
    operator written in Python takes longer than many a small layer. Only an `ExecutionTraceObserver` without a profiler
    goes unnoticed.
    """
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or profiler._is_profiler_enabled  # of other threads too
        or any(t is not None and (type(t) not in _ORDINARY or t.is_neg() or t._is_zerotensor()) for t in tensors)
    )
