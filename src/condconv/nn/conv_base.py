"""The base of conditional convolutions, forward and transposed, in any number of dimensions."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.nn.conditional import ConditionalLayer
from condconv.nn.experts import KernelSpec
from condconv.nn.experts.base import Geometry
from condconv.nn.experts.build import ExpertsOption
from condconv.nn.experts.parts import along
from condconv.nn.factory import Routing
from condconv.nn.foreign import pads_same
from condconv.nn.same_padding import static_conv
from condconv.ops.arguments import Size, check_padding, to_tuple
from condconv.ops.padding import Padding
from condconv.ops.recording import plain_shape
from condconv.ops.scalars import flag, positive
from condconv.ops.validation import check_tensor, shape_remedy

_Conv = TypeVar("_Conv", bound="CondConvNd")


class CondConvNd(ConditionalLayer):
    """A conditional convolution in `spatial_dims` dimensions; users take `CondConv2d` and its siblings."""

    spatial_dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Padding,
        output_padding: Size,
        dilation: Size,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        num_experts: int | None,
        routing: Routing | None,
        experts: ExpertsOption | None,
        method: str | None,
        impl: str,
    ) -> None:
        dims = self.spatial_dims
        in_channels, out_channels = positive("in_channels", in_channels), positive("out_channels", out_channels)
        groups = positive("groups", groups)
        if in_channels % groups or out_channels % groups:
            raise UsageError(
                f"`groups` must divide in_channels = {in_channels} and out_channels = {out_channels}, got {groups}: "
                "give a divisor of both"
            )
        kernel = to_tuple("kernel_size", kernel_size, dims, 1)
        stride, dilation = to_tuple("stride", stride, dims, 1), to_tuple("dilation", dilation, dims, 1)
        padding, padding_mode = check_padding(padding, padding_mode, stride, dims, self.transposed)
        output_padding = to_tuple("output_padding", output_padding, dims, 0)
        outer, inner = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (outer, inner // groups, *kernel)
        spec = KernelSpec(shape, out_channels, groups, self.transposed, flag("bias", bias))
        super().__init__(spec, in_channels, device, dtype, num_experts, routing, experts, method, impl)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = stride
        self.dilation = dilation
        self.groups = groups
        self.padding = padding if isinstance(padding, str) else to_tuple("padding", padding, dims, 0)
        self.output_padding = output_padding
        self.padding_mode = padding_mode

    def forward(self, x: Tensor, routing_weights: Tensor | None = None) -> Tensor:
        """Convolve each example with its own mixture of the experts.

        Args:
            x: `[B, C, *S]`, with as many spatial dimensions as the layer.
            routing_weights: `[B, E]` to use instead of `routing_fn(x)`; `None` to route by x.

        Returns:
            `[B, O, *S']`, channels_last where x is.

        Raises:
            UsageError: A shape does not fit; the message names the argument.
        """
        return self._convolve(x, self._route(x, routing_weights), self.geometry())

    def _route(self, x: Tensor, routing_weights: Tensor | None) -> Tensor:
        """Return the routing weights of x, whose shape is checked, or those given."""
        check_tensor("x", x)
        if x.dim() != self.spatial_dims + 2 or plain_shape(x)[1] != self.in_channels:
            raise UsageError(
                f"`x` must have shape [B, {self.in_channels}{', *' * self.spatial_dims}], got {tuple(plain_shape(x))}: "
                + shape_remedy(x, self.spatial_dims + 2)
            )
        return self.route(x) if routing_weights is None else routing_weights

    def geometry(self) -> Geometry:
        """Return the layer's geometry, of its attributes as they are now: a network may change its strides."""
        raise NotImplementedError

    def _convolve(self, x: Tensor, routing_weights: Tensor, geometry: Geometry) -> Tensor:
        y: Tensor = self.experts(x, routing_weights, geometry, self.impl)
        return y if self.folded_bias is None else y + along(self.folded_bias, y, 1)

    @staticmethod
    def arguments_of(static: Any) -> dict[str, Any]:
        """Return the constructor arguments of a static convolution."""
        names = ["in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode"]
        if static.transposed:
            names.append("output_padding")
        arguments = {"padding": static.padding, **{name: getattr(static, name) for name in names}}
        # These pad with zeros themselves, and do not look at a mode.
        return arguments | {"padding": "tf_same", "padding_mode": "zeros"} if pads_same(static) else arguments

    @classmethod
    def from_conv(cls: type[_Conv], conv: nn.Module, num_experts: int = 8, **options: Any) -> _Conv:
        """Return a conditional convolution that computes what `conv` does; `from_static` under its usual name."""
        return cls.from_static(conv, num_experts, **options)

    def to_static(self, routing_weights: Tensor) -> nn.Module:
        """Return the ordinary convolution that constant routing weights make of this layer.

        Args:
            routing_weights: `[E]`, for example the mean over a data set.

        Returns:
            The twin, in evaluation or training mode as this layer; for `padding="tf_same"` with a stride, a
            subclass of it that pads by TensorFlow's rule.

        Raises:
            UsageError: The weights do not have shape `[E]`.
        """
        return static_conv(self, *self.fold(routing_weights)).train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer as its twin does, with the number of experts."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, default in (("padding", 0), ("output_padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if value != (default,) * self.spatial_dims:
                parts.append(f"{name}={value!r}")
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.experts.bias is None else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        return ", ".join([*parts, f"num_experts={self.num_experts}"])
