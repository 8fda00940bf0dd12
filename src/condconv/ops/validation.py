"""Checks of the tensors that a user passes to an operation: one clear sentence each, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError, shown
from condconv.ops.autocast import autocast_dtype
from condconv.ops.geometry import Geometry
from condconv.ops.quantized import QUANTIZED_DTYPES
from condconv.ops.recording import plain_shape
from condconv.ops.scalars import FLOAT_DTYPES


def check_tensor(name: str, value: Any) -> None:
    """Check that an argument is a tensor with strides.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(value, Tensor):
        remedy = "make one of it with torch.as_tensor"
        if type(value).__name__ == "Proxy":
            remedy = "torch.fx traces with proxies, trace with torch.export instead"
        raise UsageError(f"`{name}` must be a torch.Tensor, got {type(value).__name__} {shown(value, 40)}: {remedy}")
    if value.layout != torch.strided or value.is_nested:
        kind, remedy = str(value.layout), "call .to_dense() first"
        if value.is_nested:
            kind, remedy = "a nested one", "pad it with torch.nested.to_padded_tensor, or call once per size"
        raise UsageError(f"`{name}` must be a dense tensor, got {kind}: {remedy}")


def check_tensors(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None = None
) -> None:
    """Check types, dtypes and devices. Under autocast, dtypes may differ: x decides the device only.

    Experts may be quantized, see `check_quantized`.

    Raises:
        UsageError: Not a tensor, a dtype that is not floating point or differs from that of x, or several devices.
    """
    named: dict[str, Any] = {
        "x": x,
        "weight": weight,
        "routing_weights": routing_weights,
        "bias": bias,
        "weight_scale": weight_scale,
    }
    for name, tensor in named.items():
        if tensor is None and name in ("bias", "weight_scale"):
            continue
        check_tensor(name, tensor)
        if tensor.dtype not in FLOAT_DTYPES and not (name == "weight" and tensor.dtype in QUANTIZED_DTYPES):
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
            remedy = "convert it first, for example with .float()"
            raise UsageError(f"`{name}` must have a floating-point dtype ({kinds}), got {tensor.dtype}: {remedy}")
        if tensor.device != x.device:
            raise UsageError(
                f"`{name}` must be on the device of x, {x.device}, got {tensor.device}: move it with .to(x.device)"
            )
    if autocast_dtype(x.device) is not None and x.dtype != torch.float64:
        return
    for name, tensor in (("weight", weight), ("bias", bias)):
        quantized = name == "weight" and weight.dtype in QUANTIZED_DTYPES
        if tensor is not None and tensor.dtype != x.dtype and not quantized:
            raise UsageError(
                f"`{name}` must have the dtype of x, {x.dtype}, got {tensor.dtype}: convert one of them, or run under "
                "torch.autocast"
            )


def check_shapes(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, dims: int, groups: int, transposed: bool
) -> None:
    """Check that the tensors have `dims` spatial dimensions and fit one another.

    Raises:
        UsageError: A shape does not fit.
    """
    check_experts(weight, dims, transposed)
    shape, spatial = tuple(x.shape), "".join(f", {name}" for name in ("D", "H", "W")[3 - dims :])
    if x.dim() != dims + 2:
        raise UsageError(f"`x` must have shape [B, C{spatial}], got {shape}: {shape_remedy(x, dims + 2)}")
    num_experts, out_channels, per_group = weight.shape[:3]
    in_channels = out_channels if transposed else per_group * groups
    if transposed:
        out_channels = per_group * groups
    if in_channels % groups or out_channels % groups:
        raise UsageError(
            f"`groups` must divide the channels in ({in_channels}) and out ({out_channels}), got {groups}: give a "
            "divisor of both"
        )
    if x.shape[1] != in_channels:
        raise UsageError(
            f"`x` must have {in_channels} channels for weight {tuple(weight.shape)} and groups = {groups}, got "
            f"{x.shape[1]} (shape {shape}): give experts for as many channels, or other groups"
        )
    if any(extent < 1 for extent in shape[2:]):
        raise UsageError(f"`x` must have a pixel in each spatial dimension, got {shape}: leave empty inputs out")
    check_routing_weights(routing_weights, x, num_experts)
    if bias is not None and tuple(bias.shape) != (num_experts, out_channels):
        raise UsageError(
            f"`bias` must have shape [E, O] = {(num_experts, out_channels)}, got {tuple(bias.shape)}: "
            "a bias shared by the experts is bias.expand(E, -1)"
        )


def check_routing_weights(routing_weights: Tensor, x: Tensor, num_experts: int) -> None:
    """Check that there is a weight per example of x and expert.

    Raises:
        UsageError: There is not.
    """
    expected, found = (plain_shape(x)[0], num_experts), tuple(plain_shape(routing_weights))
    if found != expected:
        raise UsageError(
            f"`routing_weights` must have shape [B, E] = {expected}, got {found}: "
            "give one weight per example and expert"
        )


def shape_remedy(x: Tensor, dims: int) -> str:
    """Return what to do with an input that has not `dims` dimensions."""
    if x.dim() == dims - 1:
        return "add a batch dimension with x.unsqueeze(0)"
    return "give a batch of inputs, or take the operation for another number of dimensions"


def check_experts(weight: Tensor, dims: int, transposed: bool) -> None:
    """Check that there are experts, and that their kernels have `dims` spatial dimensions.

    Raises:
        UsageError: They have not.
    """
    shape, layout = tuple(weight.shape), "[E, C, O/groups, *kernel]" if transposed else "[E, O, C/groups, *kernel]"
    if weight.dim() != dims + 3:
        raise UsageError(
            f"`weight` must have shape {layout} with {dims} kernel dimension{'s' if dims > 1 else ''}, got {shape}: "
            "stack one kernel per expert with torch.stack"
        )
    if 0 in shape:
        raise UsageError(
            f"`weight` must hold at least one expert, with channels and taps, got shape {shape}: give no size of 0"
        )


def check_rows(x: Tensor, weight: Tensor) -> None:
    """Check the rows `[B, ..., C]` and the experts `[E, O, C]` of a linear map.

    Raises:
        UsageError: A shape does not fit.
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    shape, experts = tuple(plain_shape(x)), tuple(plain_shape(weight))
    if weight.dim() != 3 or 0 in experts:
        raise UsageError(
            f"`weight` must have shape [E, O, C] without a size of 0, got {experts}: stack one matrix per expert with "
            "torch.stack"
        )
    if x.dim() < 2:
        raise UsageError(f"`x` must have shape [B, ..., C], got {shape}: add a batch dimension with x.unsqueeze(0)")
    if shape[-1] != experts[2]:
        raise UsageError(
            f"`x` must have shape [B, ..., C] with C = {experts[2]} as weight, got {shape}: give experts for as many "
            "channels"
        )


def check_output_size(
    size: Sequence[int], input_size: Sequence[int], kernel_size: Sequence[int], transposed: bool
) -> None:
    """Check that the kernel fits into the input with its padding.

    Raises:
        UsageError: The output would have no pixel in some dimension.
    """
    if any(extent < 1 for extent in (*size, *input_size)):
        remedy = "less padding" if transposed else "more padding"
        raise UsageError(
            f"`x` must be large enough for an output of at least one pixel, got size {tuple(input_size)} for kernel "
            f"{tuple(kernel_size)} (output {tuple(size)}): give larger inputs, or {remedy}"
        )


def check_amounts(amounts: Sequence[tuple[int, int]], input_size: Sequence[int], mode: str) -> None:
    """Check that there are pixels enough to pad with: torch mirrors and repeats an input once.

    Args:
        amounts: Pixels before and after each spatial dimension.
        input_size: Of x, without them.
        mode: `padding_mode`.

    Raises:
        UsageError: There are not.
    """
    most = {"reflect": "smaller than the input", "circular": "at most the size of the input"}.get(mode)
    spare = 1 if mode == "reflect" else 0
    if most and any(max(pair) + spare > size for pair, size in zip(amounts, input_size, strict=True)):
        raise UsageError(
            f'`padding` must be {most} for padding_mode="{mode}", got {shown(tuple(amounts))} for size '
            f'{tuple(input_size)}: give larger inputs, less padding, or padding_mode="replicate"'
        )


def check_output_padding(geometry: Geometry) -> None:
    """Check that the output padding is smaller than stride or dilation, as a transposed convolution requires.

    Raises:
        UsageError: It is not.
    """
    limits = tuple(max(pair) for pair in zip(geometry.stride, geometry.dilation, strict=True))
    if any(extra >= limit for extra, limit in zip(geometry.output_padding, limits, strict=True)):
        raise UsageError(
            f"`output_padding` must be smaller than stride or dilation, {limits}, got {geometry.output_padding}: give "
            "less, or a larger stride"
        )
