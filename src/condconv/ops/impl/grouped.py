"""One convolution for all examples: the batch is folded into the groups.

`groups = batch` in the call, so the batch size is a constant of any graph that records it: this form runs
inside a registered operator only.
"""

from __future__ import annotations

from torch import Tensor

from condconv.ops.geometry import Geometry


def _fold(x: Tensor) -> Tensor:
    """Lay the examples side by side in the channels: `[B, C, *S]` to `[1, B * C, *S]`."""
    if x.shape[0] == 1:
        return x  # a reshape would hide from the library that it is channels_last: 30 times slower when depthwise
    return x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:])


def _unfold(folded: Tensor, batch: int) -> Tensor:
    """Undo `_fold`."""
    return folded if batch == 1 else folded.reshape(batch, -1, *folded.shape[2:])


def apply(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Convolve example b of x `[B, C, *S]` with kernel b of `[B, O, C/G, *K]`; returns `[B, O, *S']`."""
    folded = geometry.convolve(_fold(x), kernels.flatten(0, 1), fold=x.shape[0])
    return _unfold(folded, x.shape[0])


def apply_backward(
    grad_output: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients for x and for the kernels, `None` if not needed."""
    grad_x, grad_kernels = geometry.convolve_backward(
        _fold(grad_output), _fold(x), kernels.flatten(0, 1), fold=x.shape[0], needs=needs
    )
    return (
        None if grad_x is None else _unfold(grad_x, x.shape[0]),
        None if grad_kernels is None else grad_kernels.reshape(kernels.shape),
    )
