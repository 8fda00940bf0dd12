"""Geometry of a two-dimensional layer for its forms: sizes, and how its input is padded."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from condconv.nn import CondConv2d
from condconv.ops.geometry import has_multiplier, is_depthwise
from condconv.ops.padding import Padding, pad_input, resolve_padding


@dataclass(frozen=True)
class Geometry:
    """Sizes of a two-dimensional convolution; attributes as those of `condconv.CondConv2d`."""

    out_channels: int
    in_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Padding
    padding_mode: str

    @classmethod
    def of(cls, layer: CondConv2d) -> Geometry:
        """Return the geometry of a layer."""
        return cls(**{name: getattr(layer, name) for name in cls.__dataclass_fields__})

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Shape of one expert, `[O, C/G, KH, KW]`."""
        height, width = self.kernel_size
        return self.out_channels, self.in_channels // self.groups, height, width

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel, and each input channel is read once."""
        return is_depthwise(self.groups, self.in_channels) and not has_multiplier(self.in_channels, self.out_channels)

    def amounts(self, x: Tensor) -> list[tuple[int, int]]:
        """Return the pixels to add before and after height and width of x `[B, C, H, W]`."""
        return resolve_padding(self.padding, x.shape[2:], self.kernel_size, self.stride, self.dilation)

    def pad(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return x with the padding that a convolution cannot do, and the symmetric zeros left for the convolution."""
        return pad_input(x, self.amounts(x), self.padding_mode)

    def pad_fully(self, x: Tensor) -> Tensor:
        """Return x with all its padding."""
        padded, zeros = self.pad(x)
        return F.pad(padded, (zeros[1], zeros[1], zeros[0], zeros[0])) if any(zeros) else padded

    def output_size(self, padded: Tensor) -> tuple[int, int]:
        """Return height and width of the output for an input with all its padding."""
        height, width = (
            (size - dilation * (taps - 1) - 1) // stride + 1
            for size, taps, stride, dilation in zip(
                padded.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        return height, width

    def slices(self, padded: Tensor) -> list[Tensor]:
        """Return the pixels `[B, C, H', W']` that each tap of the kernel reads, row by row."""
        height, width = self.output_size(padded)
        (step_y, step_x), (apart_y, apart_x) = self.stride, self.dilation
        rows = [i * apart_y for i in range(self.kernel_size[0])]
        columns = [j * apart_x for j in range(self.kernel_size[1])]
        return [
            padded[
                :, :, top : top + (height - 1) * step_y + 1 : step_y, left : left + (width - 1) * step_x + 1 : step_x
            ]
            for top in rows
            for left in columns
        ]
