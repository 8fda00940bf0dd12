"""The public operations: check, choose an implementation, call it. No maths."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from condconv.ops import recompute, selection, validation
from condconv.ops.autocast import autocast_disabled, autocast_dtype
from condconv.ops.compact import widen
from condconv.ops.geometry import Geometry, output_memory_format
from condconv.ops.impl import mix_outputs, reference
from condconv.ops.mixing import accumulation_dtype
from condconv.ops.padding import Padding, pad_input, resolve_padding
from condconv.ops.registration import compact_conv, mixed_conv

_logger = logging.getLogger(__name__)
_PLAIN = {"reference": reference.forward, "mix_outputs": mix_outputs.forward}
Size = int | Sequence[int]


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
    return _cond_conv(
        1, x, weight, routing_weights, bias, stride, padding, dilation, groups, padding_mode, impl, weight_scale
    )


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
            also compact: bfloat16 for another x, or int8 with `weight_scale`. `"native"` reads them as they are; every
            other implementation widens them first, at each call.
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
            `"matmul"`, `"per_example"`, `"native"` (CPU) or `"triton"` (GPU; "auto" does not take it yet).
        weight_scale: `[E, O]`, fp32, for int8 experts: W = weight_scale * weight for each expert and output channel.
            `None` for all others.

    Returns:
        `[B, O, H', W']` in the dtype of x (the autocast dtype under autocast), channels_last where x is.
        Sums over experts and taps are kept in fp32 or wider.

    Raises:
        TypeError: An argument is not a tensor, is not floating point, or its dtype differs from that of x.
        ValueError: Shapes, devices, padding or `impl` do not fit; the message names the argument.
        RuntimeError: The named `impl` cannot run this call, with the reason.
        UsageError: `weight_scale` does not fit, or compact experts meet an argument that needs a gradient.

    Source:
        CondConv, section 3 (arXiv:1904.04971).

    Example:
        >>> x, experts, r = torch.randn(2, 3, 8, 8), torch.randn(4, 6, 3, 3, 3), torch.rand(2, 4)
        >>> cond_conv2d(x, experts, r, padding=1).shape
        torch.Size([2, 6, 8, 8])
    """
    return _cond_conv(
        2, x, weight, routing_weights, bias, stride, padding, dilation, groups, padding_mode, impl, weight_scale
    )


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
    return _cond_conv(
        3, x, weight, routing_weights, bias, stride, padding, dilation, groups, padding_mode, impl, weight_scale
    )


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
    return _cond_conv_transpose(
        1, x, weight, routing_weights, bias, stride, padding, output_padding, groups, dilation, impl, weight_scale
    )


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
        TypeError: As in `cond_conv2d`.
        ValueError: As in `cond_conv2d`.
        RuntimeError: As in `cond_conv2d`.
    """
    return _cond_conv_transpose(
        2, x, weight, routing_weights, bias, stride, padding, output_padding, groups, dilation, impl, weight_scale
    )


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
    return _cond_conv_transpose(
        3, x, weight, routing_weights, bias, stride, padding, output_padding, groups, dilation, impl, weight_scale
    )


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
        TypeError: As in `cond_conv2d`.
        ValueError: As in `cond_conv2d`.
        RuntimeError: As in `cond_conv2d`.

    Example:
        >>> cond_linear(torch.randn(2, 5), torch.randn(4, 3, 5), torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """
    validation.check_tensors(x, weight, routing_weights, bias)
    if weight.dim() != 3:
        raise ValueError(f"weight must have shape [E, O, C], got {tuple(weight.shape)}")
    if x.dim() < 2:
        raise ValueError(f"x must have shape [B, ..., C], got {tuple(x.shape)}; add a batch dimension")
    rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]  # [B, N, C]
    # The compiled kernels, which read compact experts, have two dimensions: the second is of size one.
    dims = 1 if weight.dtype in (x.dtype, torch.float32) else 2
    columns = rows.mT if dims == 1 else rows.mT[..., None]
    kernels = weight[(..., *(None,) * dims)]
    validation.check_shapes(columns, kernels, routing_weights, bias, groups=1, transposed=False)
    geometry = Geometry((1,) * dims, (0,) * dims, (1,) * dims, 1)
    y = _run(columns, kernels, routing_weights, bias, geometry, impl, weight_scale).flatten(2).mT
    return y.unflatten(1, x.shape[1:-1]) if x.dim() > 2 else y[:, 0]


def _cond_conv(
    dims: int,
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    groups: int,
    padding_mode: str,
    impl: str,
    weight_scale: Tensor | None,
) -> Tensor:
    validation.check_tensors(x, weight, routing_weights, bias)
    validation.check_rank(weight, dims, "[E, O, C/groups, *kernel]")
    validation.check_shapes(x, weight, routing_weights, bias, groups, transposed=False)
    stride = validation.to_tuple("stride", stride, dims, 1)
    dilation = validation.to_tuple("dilation", dilation, dims, 1)
    validation.check_padding(padding, padding_mode, stride)
    amounts = resolve_padding(padding, x.shape[2:], weight.shape[3:], stride, dilation)
    x, zeros = pad_input(x, amounts, padding_mode)
    return _run(x, weight, routing_weights, bias, Geometry(stride, zeros, dilation, groups), impl, weight_scale)


def _cond_conv_transpose(
    dims: int,
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
    impl: str,
    weight_scale: Tensor | None,
) -> Tensor:
    validation.check_tensors(x, weight, routing_weights, bias)
    validation.check_rank(weight, dims, "[E, C, O/groups, *kernel]")
    validation.check_shapes(x, weight, routing_weights, bias, groups, transposed=True)
    geometry = Geometry(
        validation.to_tuple("stride", stride, dims, 1),
        validation.to_tuple("padding", padding, dims, 0),
        validation.to_tuple("dilation", dilation, dims, 1),
        groups,
        True,
        validation.to_tuple("output_padding", output_padding, dims, 0),
    )
    validation.check_output_padding(geometry)
    return _run(x, weight, routing_weights, bias, geometry, impl, weight_scale)


def _run(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    impl: str,
    weight_scale: Tensor | None,
) -> Tensor:
    """Choose and call, for arguments whose shapes fit. The one place where an implementation is chosen."""
    size = geometry.output_size(x.shape[2:], weight.shape[3:])
    validation.check_output_size(size, x.shape[2:], weight.shape[3:])
    channels = geometry.out_channels(weight)
    compact = validation.check_compact(x, weight, routing_weights, bias, weight_scale, channels)
    wanted = autocast_dtype(x.device)
    if wanted is not None and x.dtype != torch.float64:  # as torch's own convolutions do
        x = x.to(wanted)  # experts stay as they are: mixed first, then rounded
    problem = selection.describe(x, weight, routing_weights, bias, geometry, prod(size), compact)
    name = selection.resolve(impl, problem)
    if not problem.compiling and _logger.isEnabledFor(logging.DEBUG):
        how = f", {weight.dtype} and widened first" if compact and name != "native" else ""
        _logger.debug("%s for x %s, experts %s%s", name, tuple(x.shape), tuple(weight.shape), how)
    with autocast_disabled(x.device):
        if compact and name == "native":
            return compact_conv(x, weight, routing_weights, bias, weight_scale, geometry, name)
        if compact:
            weight = widen(weight, weight_scale, geometry.groups, geometry.transposed, accumulation_dtype(x.dtype))
        if name in _PLAIN:
            output = _PLAIN[name](x, weight, routing_weights, bias, geometry)
            output = output.contiguous(memory_format=output_memory_format(x))
        elif selection.must_be_plain(problem, name):
            output = recompute.forward(x, weight, routing_weights, bias, geometry, name)
        else:
            output = mixed_conv(x, weight, routing_weights, bias, geometry, name)
    return output
