"""How a layer applies kernels: the arguments of the operation other than tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from condconv import ops
from condconv.ops.padding import Padding


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


class LinearGeometry(NamedTuple):
    """Of a linear layer."""

    def per_example(
        self, x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, **how: Any
    ) -> Tensor:
        """Map each example of x `[B, ..., C]` by its own mixture; see `condconv.ops.cond_linear`."""
        return ops.cond_linear(x, weight, routing_weights, bias, **how)
