"""Static convolutions, among them those that pad as TensorFlow does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.ops.padding import pad_input, resolve_padding


class TFSameConv2d(nn.Conv2d):
    """A static `torch.nn.Conv2d` with TensorFlow's SAME padding: `ceil(size / stride)` outputs.

    Takes the arguments of `torch.nn.Conv2d`; `padding` and `padding_mode` are ignored; the input is zero-padded.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `[B, C, H, W]`; the odd pixel of padding goes after."""
        amounts = resolve_padding("tf_same", input.shape[2:], self.kernel_size, self.stride, self.dilation)
        padded, zeros = pad_input(input, amounts, "zeros")
        # Symmetric padding is left to the convolution, which does not copy the input for it.
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, zeros, self.dilation, self.groups)


def static_conv(layer: Any, kernel: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """Return the static twin of a conditional convolution with the given kernel `[O, C/G, *K]` and bias `[O]`.

    Raises:
        UsageError: TensorFlow's padding with a stride in another number of dimensions than two.
    """
    arguments = {
        name: getattr(layer, name)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    }
    kind: type[nn.Module] = layer.static_type
    if layer.transposed:
        arguments["output_padding"] = layer.output_padding
    else:
        arguments["padding_mode"] = layer.padding_mode
    if layer.padding == "tf_same":
        if all(step == 1 for step in layer.stride):
            arguments["padding"] = "same"
        elif layer.spatial_dims == 2 and layer.padding_mode == "zeros":
            kind, arguments["padding"] = TFSameConv2d, 0
        else:
            raise UsageError(
                '`padding` must not be "tf_same" with a stride in a layer that is made static, but in two dimensions '
                f"with zeros, got stride {layer.stride} and padding_mode={layer.padding_mode!r}: torch has no layer "
                "for it, give the amounts"
            )
    conv: Any = kind(**arguments, bias=bias is not None, device="meta")
    conv.weight, conv.bias = kernel, bias
    return conv
