"""Transposed convolutions with example-dependent kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from condconv import ops
from condconv.errors import UsageError, shown
from condconv.nn.conv_base import CondConvNd
from condconv.nn.experts.build import ExpertsOption
from condconv.nn.factory import Routing
from condconv.nn.geometry import TransposedGeometry
from condconv.ops.arguments import Size
from condconv.ops.geometry import Geometry
from condconv.ops.recording import plain_shape


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
            output_padding,
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

    def forward(
        self,
        x: Tensor,
        routing_weights: Tensor | Sequence[int] | None = None,
        output_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Convolve each example with its own mixture of the experts.

        Args:
            x: `[B, C, *S]`, with as many spatial dimensions as the layer.
            routing_weights: `[B, E]` to use instead of `routing_fn(x)`; `None` to route by x. Sizes in this place are
                taken for `output_size`, which the twin takes second.
            output_size: Of the output, `S'` or `[B, O, *S']`, as the twin takes it: it decides `output_padding`. `None`
                for the layer's `output_padding`.

        Returns:
            `[B, O, *S']`, channels_last where x is.

        Raises:
            UsageError: A shape does not fit; the message names the argument.
        """
        routing_weights, output_size = sizes_second(routing_weights, output_size)
        given: Any = routing_weights
        weights = self._route(x, given)
        geometry = self.geometry()
        if output_size is not None:
            geometry = geometry._replace(output_padding=self._padding_for(output_size, plain_shape(x)[2:]))
        return self._convolve(x, weights, geometry)

    def geometry(self) -> TransposedGeometry:
        """See the base."""
        sizes = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return TransposedGeometry(type(self)._op, *sizes)

    def _padding_for(self, output_size: Sequence[int], input_size: Sequence[int]) -> tuple[int, ...]:
        """Return the output padding that gives an output of some size."""
        dims = self.spatial_dims
        sizes = tuple(output_size) if isinstance(output_size, (tuple, list)) else ()
        wanted = [size for size in (sizes[2:] if len(sizes) == dims + 2 else sizes) if hasattr(size, "__index__")]
        padding: Any = self.padding  # never a name here
        geometry = Geometry(self.stride, padding, self.dilation, self.groups, True, (0,) * dims)
        least = geometry.output_size(input_size, self.kernel_size)
        most = tuple(size + stride - 1 for size, stride in zip(least, self.stride, strict=True))
        fits = len(wanted) == dims and all(a <= b <= c for a, b, c in zip(least, wanted, most, strict=True))
        if not fits:
            raise UsageError(
                f"`output_size` must lie between {least} and {most} for an input of {tuple(input_size)}, got "
                f"{shown(output_size)}: leave it out for the layer's own output_padding"
            )
        return tuple(size - smallest for size, smallest in zip(wanted, least, strict=True))


class CondConvTranspose1d(_CondConvTranspose):
    """`torch.nn.ConvTranspose1d` with example-dependent kernels. Arguments as in `CondConvTranspose2d`."""

    spatial_dims = 1
    static_type = nn.ConvTranspose1d
    _op = staticmethod(ops.cond_conv_transpose1d)


class CondConvTranspose2d(_CondConvTranspose):
    """`torch.nn.ConvTranspose2d` with example-dependent kernels: `[B, C, H, W] -> [B, O, H', W']`.

    Arguments of the twin in its order, then `num_experts`, `routing`, `experts`, `method`, `impl` as in `CondConv2d`.
    """

    spatial_dims = 2
    static_type = nn.ConvTranspose2d
    _op = staticmethod(ops.cond_conv_transpose2d)


class CondConvTranspose3d(_CondConvTranspose):
    """`torch.nn.ConvTranspose3d` with example-dependent kernels. Arguments as in `CondConvTranspose2d`."""

    spatial_dims = 3
    static_type = nn.ConvTranspose3d
    _op = staticmethod(ops.cond_conv_transpose3d)


def sizes_second(
    routing_weights: Tensor | Sequence[int] | None, output_size: Sequence[int] | None
) -> tuple[Any, Sequence[int] | None]:
    """Return routing weights and output size of a call in which the size may be second, as the twin takes it."""
    if isinstance(routing_weights, (tuple, list)):
        return None, routing_weights
    return routing_weights, output_size
