"""The numbers of a convolution, resolved: what every implementation is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condconv.ops.recording import plain_shape


def is_depthwise(groups: int, in_channels: int) -> bool:
    """Return whether a convolution is depthwise: it has several groups, each of one input channel."""
    return groups > 1 and groups == in_channels


def has_multiplier(in_channels: int, out_channels: int) -> bool:
    """Return whether a depthwise convolution has several output channels for each input channel."""
    return out_channels != in_channels


class Geometry(NamedTuple):
    """Stride, symmetric zero padding, dilation and groups of an N-dimensional convolution.

    Each tuple has one entry per spatial dimension. Asymmetric padding and padding modes other than zeros
    never reach an implementation: `padding.pad` has applied them before.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def output_size(self, input_size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the output, in pixels, for an input and a kernel of the given sizes."""
        sizes = []
        for dim, (size, taps) in enumerate(zip(input_size, kernel_size, strict=True)):
            reach = self.dilation[dim] * (taps - 1) + 1
            if self.transposed:
                inner = (size - 1) * self.stride[dim] + reach + self.output_padding[dim]
                sizes.append(inner - 2 * self.padding[dim])
            else:
                sizes.append((size + 2 * self.padding[dim] - reach) // self.stride[dim] + 1)
        return tuple(sizes)

    def out_channels(self, weight: Tensor) -> int:
        """Return O for stacked experts `[E, O, C/G, ...]`, or `[E, C, O/G, ...]` where transposed."""
        return weight.shape[2] * self.groups if self.transposed else weight.shape[1]

    def is_depthwise(self, weight: Tensor) -> bool:
        """Return whether a group of stacked kernels has one input channel, or one output channel if transposed."""
        return is_depthwise(self.groups, self.groups * plain_shape(weight)[2])

    def arguments(self, fold: int) -> tuple[Any, ...]:
        """Return the arguments of torch's convolution after the bias; `fold` as in `convolve`."""
        output_padding = self.output_padding or (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, self.transposed, output_padding, self.groups * fold

    def convolve(self, x: Tensor, kernel: Tensor, *, fold: int = 1) -> Tensor:
        """Apply torch's convolution. `fold` examples lie side by side in the channels (and the groups)."""
        return torch.convolution(x, kernel, None, *self.arguments(fold))

    def convolve_backward(
        self, grad_output: Tensor, x: Tensor, kernel: Tensor, *, fold: int, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of `convolve` with respect to x and kernel, `None` if not needed."""
        grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
            grad_output, x, kernel, None, *self.arguments(fold), [*needs, False]
        )
        return grad_x, grad_kernel


def output_memory_format(x: Tensor) -> torch.memory_format:
    """Return the layout of the output for the input x: channels_last if x is, otherwise contiguous.

    Read off the strides: under `torch.vmap` a tensor does not answer `is_contiguous(memory_format=...)`.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() not in formats or x.is_contiguous():
        return torch.contiguous_format
    expected, shape = 1, plain_shape(x)
    for dim in (1, *range(x.dim() - 1, 1, -1), 0):
        if shape[dim] != 1 and x.stride(dim) != expected:
            return torch.contiguous_format
        expected *= shape[dim]
    return formats[x.dim()]


def laid_out_as(y: Tensor, x: Tensor) -> Tensor:
    """Return y in the layout that x asks of an output."""
    layout = output_memory_format(x)
    if layout == torch.contiguous_format or not torch._C._are_functorch_transforms_active():
        return y.contiguous(memory_format=layout)
    return y.movedim(1, -1).contiguous().movedim(-1, 1)  # `torch.vmap` knows no other memory format


def dense_strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """Return the strides of a new tensor in a layout."""
    order = (1, *range(len(shape) - 1, 1, -1), 0) if channels_last else range(len(shape) - 1, -1, -1)
    strides, step = [0] * len(shape), 1
    for dim in order:
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def strided_as(y: Tensor, x: Tensor) -> Tensor:
    """Return y, laid out as x asks of an output, with the very strides of a new tensor in that layout.

    They differ where a size is 1: any stride is right there, but torch compares them with those of the fake, and code
    compiled for these must not be given others. Not differentiable at no cost: for what runs inside an operator.
    """
    if 1 not in y.shape:
        return y
    strides = dense_strides(y.shape, output_memory_format(x) != torch.contiguous_format)
    return y if y.stride() == strides else y.as_strided(y.shape, strides)


class Output(NamedTuple):
    """Shape, strides and layout of an output: known before anything is computed."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    layout: torch.memory_format

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, geometry: Geometry) -> Output:
        """Return those of the convolution of x with stacked experts."""
        size, layout = geometry.output_size(x.shape[2:], weight.shape[3:]), output_memory_format(x)
        shape = (x.shape[0], geometry.out_channels(weight), *size)
        return cls(shape, dense_strides(shape, layout != torch.contiguous_format), layout)

    def form(self, y: Tensor) -> Tensor:
        """Return y laid out so, with these very strides, as `strided_as` does."""
        if y.stride() != self.strides:
            y = y.contiguous(memory_format=self.layout)
            y = y if y.stride() == self.strides else y.as_strided(self.shape, self.strides)
        return owned(y) if y._is_view() else y


def owned(y: Tensor) -> Tensor:
    """Return the same numbers as a tensor of its own: autograd refuses to change a view from an operator in place."""
    if not y._is_view():
        return y
    return y.new_empty(0).set_(y.untyped_storage(), y.storage_offset(), y.size(), y.stride())
