"""Static layers of classes that are not torch's: which of them compute the same as torch's."""

from __future__ import annotations

from torch import nn

from condconv.nn.same_padding import TFSameConv2d

# Classes by full name, so that no library is imported. These compute what their base does after TensorFlow's padding;
FOREIGN_PADDING = ("timm.layers.conv2d_same.Conv2dSame",)
# these compute what their base does, unless they are scripted.
_PLAIN = ("timm.layers.linear.Linear",)


def full_name(kind: type) -> str:
    """Return module and class name, which identifies a class without importing it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def pads_same(layer: nn.Module) -> bool:
    """Whether a static convolution pads as TensorFlow does."""
    return isinstance(layer, TFSameConv2d) or full_name(type(layer)) in FOREIGN_PADDING


def has_own_forward(layer: nn.Module, twin: type[nn.Module]) -> bool:
    """Whether a layer of a class derived from `twin` computes, or may compute, something different."""
    kind: type[nn.Module] = type(layer)
    if kind is TFSameConv2d or full_name(kind) in (*FOREIGN_PADDING, *_PLAIN):
        return False
    same = all(getattr(kind, name, None) is getattr(twin, name, None) for name in ("forward", "_conv_forward"))
    return not same or "forward" in vars(layer)
