"""How a layer applies kernels: the arguments of the operation other than tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from condconv import ops
from condconv.nn.experts.parts import mix_channels
from condconv.ops.geometry import Geometry
from condconv.ops.padding import Padding, pad_input, resolve_padding
from condconv.ops.per_example import conv_per_example


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
        zeros: Padding = self.padding
        if isinstance(zeros, str) or self.padding_mode != "zeros":  # else the convolution pads by itself
            amounts = resolve_padding(zeros, x.shape[2:], kernel.shape[2:], self.stride, self.dilation)
            x, zeros = pad_input(x, amounts, self.padding_mode)
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
        y: Tensor = convolve(x, kernel, bias, self.stride, zeros, self.dilation, self.groups)
        return y

    def each(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Convolve each example with its own kernel, of `[B, O, C/G, *K]`."""
        amounts = resolve_padding(self.padding, x.shape[2:], kernels.shape[3:], self.stride, self.dilation)
        padded, zeros = pad_input(x, amounts, self.padding_mode)
        return conv_per_example(padded, kernels, Geometry(self.stride, zeros, self.dilation, self.groups))

    def under_centre(self, x: Tensor, kernel_size: Sequence[int]) -> Tensor:
        """Return the pixels `[B, C, *S']` that the centre of a kernel lies on, one for each output."""
        amounts = resolve_padding(self.padding, x.shape[2:], kernel_size, self.stride, self.dilation)
        padded, zeros = pad_input(x, amounts, self.padding_mode)
        index = [slice(None), slice(None)]
        for pad, size, step, dilation in zip(zeros, kernel_size, self.stride, self.dilation, strict=True):
            before, after = dilation * (size // 2) - pad, dilation * (size - 1 - size // 2) - pad
            if before < 0 or after < 0:  # it lies on padding too
                return self._replace(padding=0).under_centre(F.pad(padded, _both(zeros)), kernel_size)
            index.append(slice(before, None if after == 0 else -after, step))
        return padded[tuple(index)]


def _both(amounts: Sequence[int]) -> list[int]:
    """Return paddings on both sides as `torch.nn.functional.pad` takes them, the last dimension first."""
    return [amount for each in reversed(amounts) for amount in (each, each)]


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

    def each(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Convolve each example with its own kernel, of `[B, C, O/G, *K]`."""
        _, stride, padding, output_padding, groups, dilation = self
        zeros: Any = padding  # never a name here
        return conv_per_example(x, kernels, Geometry(stride, zeros, dilation, groups, True, output_padding))

    def under_centre(self, x: Tensor, kernel_size: Sequence[int]) -> Tensor:
        """Raise an error: an output may lie under the centre of no kernel.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("transposed convolutions")


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

    def each(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Map each example by its own matrix, of `[B, O, C]`."""
        return mix_channels(x, kernels, -1)

    def under_centre(self, x: Tensor, kernel_size: Sequence[int]) -> Tensor:
        """Return x."""
        return x
