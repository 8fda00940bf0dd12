"""Transposed convolutions with example-dependent kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from condconv import ops
from condconv.nn.conv_base import CondConvNd, Size
from condconv.nn.factory import Routing


class _CondConvTranspose(CondConvNd):
    transposed = True
    _op: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_experts: int = 8,
        routing: Routing = "sigmoid",
        impl: str = "auto",
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f'padding_mode must be "zeros" for a transposed convolution, got {padding_mode!r}')
        if isinstance(padding, str):
            raise ValueError(f"padding must be an int or ints for a transposed convolution, got {padding!r}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            num_experts,
            routing,
            impl,
        )

    def _convolve(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        return type(self)._op(
            x,
            self.weight,
            routing_weights,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
            impl=self.impl,
            weight_scale=self.weight_scale,
        )


class CondConvTranspose1d(_CondConvTranspose):
    """`torch.nn.ConvTranspose1d` with example-dependent kernels. Arguments as in `CondConvTranspose2d`."""

    spatial_dims = 1
    twin = nn.ConvTranspose1d
    _op = staticmethod(ops.cond_conv_transpose1d)


class CondConvTranspose2d(_CondConvTranspose):
    """`torch.nn.ConvTranspose2d` with example-dependent kernels: `[B, C, H, W] -> [B, O, H', W']`.

    Arguments of the twin in its order, then `num_experts`, `routing` and `impl` as in `CondConv2d`. Without the
    twin's `output_size` in `forward`.
    """

    spatial_dims = 2
    twin = nn.ConvTranspose2d
    _op = staticmethod(ops.cond_conv_transpose2d)


class CondConvTranspose3d(_CondConvTranspose):
    """`torch.nn.ConvTranspose3d` with example-dependent kernels. Arguments as in `CondConvTranspose2d`."""

    spatial_dims = 3
    twin = nn.ConvTranspose3d
    _op = staticmethod(ops.cond_conv_transpose3d)
