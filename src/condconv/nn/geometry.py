"""How a layer applies kernels: the arguments of the operation other than tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from condconv import ops
from condconv.ops.padding import Padding, pad_input, resolve_padding


class ConvGeometry(NamedTuple):
    """Of a convolution; attributes as those of `condconv.CondConv2d`."""

    operation: Callable[..., Tensor]
    stride: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def per_example(
        self, x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, **how: Any
    ) -> Tensor:
        """Convolve each example of x `[B, C, *S]` with its own mixture; see `condconv.ops.cond_conv2d`."""
        return self.operation(
            x,
            weight,
            routing_weights,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            **how,
        )

    def shared(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve all examples with one kernel `[O, C/G, *K]`."""
        amounts = resolve_padding(self.padding, x.shape[2:], kernel.shape[2:], self.stride, self.dilation)
        padded, zeros = pad_input(x, amounts, self.padding_mode)
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
        y: Tensor = convolve(padded, kernel, bias, self.stride, zeros, self.dilation, self.groups)
        return y


class TransposedGeometry(NamedTuple):
    """Of a transposed convolution; attributes as those of `condconv.CondConvTranspose2d`."""

    operation: Callable[..., Tensor]
    stride: tuple[int, ...]
    padding: Padding
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]

    def per_example(
        self, x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, **how: Any
    ) -> Tensor:
        """Convolve each example of x `[B, C, *S]`; see `condconv.ops.cond_conv_transpose2d`."""
        operation, *rest = self
        return operation(x, weight, routing_weights, bias, *rest, **how)

    def shared(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve all examples with one kernel `[C, O/G, *K]`."""
        convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.dim() - 3]
        y: Tensor = convolve(x, kernel, bias, *self[1:])
        return y


class LinearGeometry(NamedTuple):
    """Of a linear layer."""

    def per_example(
        self, x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, **how: Any
    ) -> Tensor:
        """Map each example of x `[B, ..., C]` by its own mixture; see `condconv.ops.cond_linear`."""
        return ops.cond_linear(x, weight, routing_weights, bias, **how)

    def shared(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Map all examples by one matrix `[O, C]`."""
        return F.linear(x, kernel, bias)
