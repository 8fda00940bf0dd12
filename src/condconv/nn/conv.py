"""Convolutions with example-dependent kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from condconv import ops
from condconv.nn.conv_base import CondConvNd
from condconv.nn.experts.build import ExpertsOption
from condconv.nn.factory import Routing
from condconv.nn.geometry import ConvGeometry
from condconv.ops.arguments import Size
from condconv.ops.padding import Padding


class _CondConv(CondConvNd):
    _op: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_experts: int | None = None,
        routing: Routing | None = None,
        experts: ExpertsOption | None = None,
        method: str | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            0,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            num_experts,
            routing,
            experts,
            method,
            impl,
        )

    def geometry(self) -> ConvGeometry:
        """See the base."""
        return ConvGeometry(type(self)._op, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)


class CondConv1d(_CondConv):
    """`torch.nn.Conv1d` with example-dependent kernels: `[B, C, L] -> [B, O, L']`. Arguments as in `CondConv2d`."""

    spatial_dims = 1
    static_type = nn.Conv1d
    _op = staticmethod(ops.cond_conv1d)


class CondConv2d(_CondConv):
    """`torch.nn.Conv2d` with example-dependent kernels: `[B, C, H, W] -> [B, O, H', W']`.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: An int or one for each spatial dimension, as the next three.
        stride: Stride.
        padding: Pixels on both sides, or `"valid"`, `"same"`, `"tf_same"` (see `condconv.ops.cond_conv2d`).
        dilation: Dilation.
        groups: Groups; C for a depthwise convolution.
        bias: Whether each expert has a bias `[O]`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
        device: Where the parameters live.
        dtype: Of the parameters.
        num_experts: E, the number of kernels; `None` for 8, or for what the method has.
        routing: From the input to the weights `[B, E]`: a name (`"sigmoid"`, `"softmax"`, `"hidden"`,
            `"hierarchical"`, `"top_k"`, `"constant"`, `"external"`), also with options as in
            `"sigmoid(standardize=True)"`, a factory called with `(in_channels, num_experts)`, or a module; `None` for
            `"sigmoid"`, the paper's.
        experts: What the kernels are made of: `"dense"`, E whole kernels; `"deltas"`, a shared kernel and E routed
            differences; `"shared"`, one kernel with small routed parts, also with options as in `"shared(rank=16)"`; or
            a factory of `condconv.nn.Experts`; `None` for `"dense"`, the paper's. With `"deltas"` or `"shared"`, take
            `routing="sigmoid(standardize=True)"`.
        method: A method by name instead of `routing` and `experts`: a key of `condconv.nn.METHODS`, also with options
            as in `"dyconv(annealing_steps=5000)"` or `"deltas(scale=0.1)"`.
        impl: How it is computed; see `condconv.ops.cond_conv2d`.

    Raises:
        UsageError: An argument is out of range; the message names it.

    Source:
        CondConv, section 3 (arXiv:1904.04971); initialisation as in the authors' code.

    Example:
        >>> conv = CondConv2d(8, 16, 3, padding=1, num_experts=4)
        >>> conv(torch.randn(2, 8, 10, 10)).shape
        torch.Size([2, 16, 10, 10])
        >>> conv(torch.randn(2, 8, 10, 10), torch.full((2, 4), 0.25)).shape  # routed from outside
        torch.Size([2, 16, 10, 10])
    """

    spatial_dims = 2
    static_type = nn.Conv2d
    _op = staticmethod(ops.cond_conv2d)


class CondConv3d(_CondConv):
    """`torch.nn.Conv3d` with example-dependent kernels: `[B, C, D, H, W] -> [B, O, D', H', W']`.

    Arguments as in `CondConv2d`.
    """

    spatial_dims = 3
    static_type = nn.Conv3d
    _op = staticmethod(ops.cond_conv3d)
