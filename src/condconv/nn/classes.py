"""Which static class each conditional one gives experts, and which of these classes a layer is of."""

from __future__ import annotations

from torch import nn

from condconv.nn.conditional import ConditionalLayer
from condconv.nn.conv import CondConv1d, CondConv2d, CondConv3d
from condconv.nn.conv_transpose import CondConvTranspose1d, CondConvTranspose2d, CondConvTranspose3d
from condconv.nn.linear import CondLinear

CONDITIONAL_CLASSES: dict[type[nn.Module], type[ConditionalLayer]] = {
    layer.static_type: layer
    for layer in (
        CondConv1d,
        CondConv2d,
        CondConv3d,
        CondConvTranspose1d,
        CondConvTranspose2d,
        CondConvTranspose3d,
        CondLinear,
    )
}
"""Each of torch's classes of layers, and the class that gives it experts."""

STATIC_CLASSES = tuple(CONDITIONAL_CLASSES)
"""Torch's classes of layers, for `isinstance`."""


def static_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return the one of `STATIC_CLASSES` of a layer, static or conditional; `None` for any other module."""
    kind = layer.static_type if isinstance(layer, ConditionalLayer) else type(layer)
    return next((each for each in STATIC_CLASSES if issubclass(kind, each)), None)


def conditional_class(layer: nn.Module) -> type[ConditionalLayer]:
    """Return the class that gives experts to a layer of one of `STATIC_CLASSES`."""
    return next(CONDITIONAL_CLASSES[each] for each in STATIC_CLASSES if isinstance(layer, each))


def is_linear(layer: nn.Module) -> bool:
    """Return whether a module is a linear layer, static or conditional."""
    return static_class(layer) is nn.Linear


def is_conv(layer: nn.Module) -> bool:
    """Return whether a module is a convolution, a transposed one too, static or conditional."""
    return static_class(layer) not in (None, nn.Linear)
