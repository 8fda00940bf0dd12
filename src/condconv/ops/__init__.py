"""One operation, the convolution with example-dependent kernels, and several ways to compute it."""

from condconv.ops.api import (
    cond_conv1d,
    cond_conv2d,
    cond_conv3d,
    cond_conv_transpose1d,
    cond_conv_transpose2d,
    cond_conv_transpose3d,
    cond_linear,
)

__all__ = [
    "cond_conv1d",
    "cond_conv2d",
    "cond_conv3d",
    "cond_conv_transpose1d",
    "cond_conv_transpose2d",
    "cond_conv_transpose3d",
    "cond_linear",
]
