"""Checks of what a user passes to an operation: one clear sentence each, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from condconv.errors import UsageError
from condconv.ops.autocast import autocast_dtype
from condconv.ops.geometry import Geometry
from condconv.ops.padding import PADDING_MODES, PADDING_NAMES, Padding

COMPACT_DTYPES = (torch.bfloat16, torch.int8)


def to_tuple(name: str, value: int | Sequence[int], dims: int, minimum: int) -> tuple[int, ...]:
    """Return `value` with one int a spatial dimension.

    Raises:
        ValueError: `value` is not an int, nor a sequence of `dims` ints, of at least `minimum`.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(values) != dims or any(not isinstance(entry, Integral) or entry < minimum for entry in values):
        raise ValueError(f"{name} must be an int or {dims} ints, each at least {minimum}, got {value!r}")
    return tuple(int(entry) for entry in values)  # True and numpy's are ints, but not for torch's convolutions


def check_positive(**counts: object) -> None:
    """Check that each count is a positive int; the keywords are the names of the arguments.

    Raises:
        ValueError: One is not.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")


def check_padding(padding: Padding, mode: str, stride: Sequence[int]) -> None:
    """Check the name or the amounts of the padding, and its mode.

    Raises:
        ValueError: Unknown name or mode, a negative or wrong number of amounts, or `"same"` with a stride.
    """
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {mode!r}")
    if not isinstance(padding, str):
        to_tuple("padding", padding, len(stride), 0)
    elif padding not in PADDING_NAMES:
        raise ValueError(f"padding must be an int, ints, or one of {', '.join(PADDING_NAMES)}, got {padding!r}")
    elif padding == "same" and any(step != 1 for step in stride):
        raise ValueError(
            f'padding must not be "same" with stride {tuple(stride)}: torch defines it for stride 1 only; '
            'use "tf_same" (TensorFlow\'s rule) or give the amounts'
        )


def check_shapes(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, groups: int, transposed: bool
) -> None:
    """Check that the tensors fit one another; the number of spatial dimensions is `weight.dim() - 3`.

    Raises:
        ValueError: A shape does not fit.
    """
    dims = weight.dim() - 3
    spatial = "".join(f", {name}" for name in ("D", "H", "W")[3 - dims :]) if dims else ""
    if x.dim() != dims + 2:
        raise ValueError(
            f"x must have shape [B, C{spatial}], got {tuple(x.shape)}"
            + ("; add a batch dimension with x.unsqueeze(0)" if x.dim() == dims + 1 else "")
        )
    num_experts, out_channels, per_group = weight.shape[:3]
    if num_experts < 1:
        raise ValueError("weight must hold at least one expert, got shape " + str(tuple(weight.shape)))
    if 0 in weight.shape[1:]:
        raise ValueError(f"weight must hold kernels with channels and taps, got shape {tuple(weight.shape)}")
    in_channels = out_channels if transposed else per_group * groups
    if transposed:
        out_channels = per_group * groups
    if not isinstance(groups, Integral) or groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups must be a positive divisor of the channels in ({in_channels}) and out ({out_channels}), "
            f"got {groups!r}"
        )
    if x.shape[1] != in_channels:
        raise ValueError(
            f"x must have {in_channels} channels for weight {tuple(weight.shape)} with {groups} groups, "
            f"got {x.shape[1]} (shape {tuple(x.shape)})"
        )
    if tuple(routing_weights.shape) != (x.shape[0], num_experts):
        raise ValueError(
            f"routing_weights must have shape [B, E] = {(x.shape[0], num_experts)}, got {tuple(routing_weights.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (num_experts, out_channels):
        raise ValueError(
            f"bias must have shape [E, O] = {(num_experts, out_channels)}, got {tuple(bias.shape)}; "
            "a bias shared by the experts is bias.expand(E, -1)"
        )


def check_tensors(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None) -> None:
    """Check types, dtypes and devices. Under autocast, dtypes may differ: x decides the device only.

    Experts may be compact, see `check_compact`.

    Raises:
        TypeError: Not a tensor, or a dtype that is not floating point or differs from that of x.
        ValueError: Tensors on several devices.
    """
    named = {"x": x, "weight": weight, "routing_weights": routing_weights, "bias": bias}
    for name, tensor in named.items():
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if not (tensor.is_floating_point() or (name == "weight" and tensor.dtype in COMPACT_DTYPES)):
            raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}; convert it first")
        if tensor.device != x.device:
            raise ValueError(
                f"{name} must be on the device of x, {x.device}, got {tensor.device}; move it with .to(x.device)"
            )
    if autocast_dtype(x.device) is not None and x.dtype != torch.float64:
        return
    for name in ("weight", "bias"):
        tensor = named[name]
        if name == "weight" and tensor is not None and tensor.dtype in COMPACT_DTYPES:
            continue
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(
                f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}; "
                "convert one of them, or run under torch.autocast"
            )


def check_compact(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    out_channels: int,
) -> bool:
    """Check that compact experts have the scale they need and no gradients to compute.

    Returns:
        Whether the experts are compact: int8, or bfloat16 for an x that is not, outside autocast.

    Raises:
        UsageError: They do not fit, or a gradient is needed.
    """
    if (weight.dtype == torch.int8) != (weight_scale is not None):
        wanted = "be given for int8 experts" if weight_scale is None else f"be None for {weight.dtype} experts"
        raise UsageError(
            f"weight_scale must {wanted}, got {'None' if weight_scale is None else 'a tensor'}: it belongs to int8 "
            "experts, condconv.quantize_experts_ makes both"
        )
    if weight_scale is not None:
        shape, found = (weight.shape[0], out_channels), tuple(weight_scale.shape)
        if found != shape or weight_scale.dtype != torch.float32 or weight_scale.device != x.device:
            raise UsageError(
                f"weight_scale must be torch.float32 [E, O] = {shape} on {x.device}, "
                f"got {weight_scale.dtype} {found} on {weight_scale.device}"
            )
    autocasting = autocast_dtype(x.device) is not None and x.dtype != torch.float64
    compact = weight_scale is not None or (weight.dtype != x.dtype and not autocasting)
    tensors = (x, weight, routing_weights, bias, weight_scale)
    if compact and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise UsageError(
            f"weight must be ordinary experts where gradients are needed, got compact ones ({weight.dtype}): call "
            "under torch.no_grad() or torch.inference_mode(), and quantize after training"
        )
    return compact


def check_output_size(
    size: Sequence[int], input_size: Sequence[int], kernel_size: Sequence[int], transposed: bool
) -> None:
    """Check that the input has pixels, and the kernel fits into it with its padding.

    Raises:
        ValueError: The input or the output would have no pixel in some dimension.
    """
    if any(extent < 1 for extent in (*size, *input_size)):
        remedy = "less padding" if transposed else "more padding"
        raise ValueError(
            f"x must be large enough for an output of at least one pixel, got size {tuple(input_size)} for kernel "
            f"{tuple(kernel_size)} (output {tuple(size)}); give larger inputs, or {remedy}"
        )


def check_rank(weight: Tensor, dims: int, shape: str) -> None:
    """Check that the experts have `dims` spatial dimensions.

    Raises:
        ValueError: They have not; `shape` says how they should look.
    """
    if weight.dim() != dims + 3:
        raise ValueError(
            f"weight must have shape {shape} with {dims} kernel dimension{'s' if dims > 1 else ''}, "
            f"got {tuple(weight.shape)}"
        )


def check_output_padding(geometry: Geometry) -> None:
    """Check that the output padding is smaller than stride or dilation, as a transposed convolution requires.

    Raises:
        ValueError: It is not.
    """
    limits = tuple(max(pair) for pair in zip(geometry.stride, geometry.dilation, strict=True))
    if any(extra >= limit for extra, limit in zip(geometry.output_padding, limits, strict=True)):
        raise ValueError(
            f"output_padding must be smaller than stride or dilation, {limits}, got {geometry.output_padding}"
        )
