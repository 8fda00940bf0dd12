"""The public operations: their arguments, and no maths."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from condconv.ops import validation
from condconv.ops.arguments import How, Size
from condconv.ops.call import compute
from condconv.ops.padding import Padding
from condconv.ops.recording import plain_shape


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
    how = (1, impl, stride, padding, dilation, groups, padding_mode, False, 0)
    return compute(x, weight, routing_weights, bias, weight_scale, how)


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
    how = (2, impl, stride, padding, dilation, groups, padding_mode, False, 0)
    return compute(x, weight, routing_weights, bias, weight_scale, how)


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
    how = (3, impl, stride, padding, dilation, groups, padding_mode, False, 0)
    return compute(x, weight, routing_weights, bias, weight_scale, how)


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
    how = (1, impl, stride, padding, dilation, groups, "zeros", True, output_padding)
    return compute(x, weight, routing_weights, bias, weight_scale, how)


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
    how = (2, impl, stride, padding, dilation, groups, "zeros", True, output_padding)
    return compute(x, weight, routing_weights, bias, weight_scale, how)


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
    how = (3, impl, stride, padding, dilation, groups, "zeros", True, output_padding)
    return compute(x, weight, routing_weights, bias, weight_scale, how)


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
    how = tuple(How(2, impl))
    y = compute(columns, kernels, routing_weights, bias, weight_scale, how).flatten(2).transpose(-2, -1).contiguous()
    y = y[:, :0] if empty else y
    return y.unflatten(1, x.shape[1:-1]) if x.dim() > 2 else y[:, 0]
