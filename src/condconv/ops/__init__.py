"""One operation, the convolution with example-dependent kernels, and several ways to compute it."""

from condconv.ops.api import (
    cond_conv1d as cond_conv1d,
)
from condconv.ops.api import (
    cond_conv2d as cond_conv2d,
)
from condconv.ops.api import (
    cond_conv3d as cond_conv3d,
)
from condconv.ops.api import (
    cond_conv_transpose1d as cond_conv_transpose1d,
)
from condconv.ops.api import (
    cond_conv_transpose2d as cond_conv_transpose2d,
)
from condconv.ops.api import (
    cond_conv_transpose3d as cond_conv_transpose3d,
)
from condconv.ops.api import (
    cond_linear as cond_linear,
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
