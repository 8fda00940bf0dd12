"""One convolution for all examples: the batch is folded into the groups.

`groups = batch` in the call, so the batch size is a constant of any graph that records it: this form runs
inside a registered operator only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, Output
from condconv.ops.implementation import Implementation, Runner
from condconv.ops.mixing import bind_bias, bind_mix
from condconv.ops.problem import Problem
from condconv.ops.recompute import MixedKernels


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
    if x.shape[0] == 0:  # no convolution has 0 groups; one of no examples keeps the shape and the autograd graph
        return geometry.convolve(x, kernels.sum(0))
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


def prepare(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    geometry: Geometry,
) -> Runner:
    """Return what computes calls that look like this one, without gradients."""
    mix, output, batch = bind_mix(weight, routing_weights, x.dtype), Output.of(x, weight, geometry), x.shape[0]
    convolution = geometry.arguments(batch)
    shift = bind_bias(bias, routing_weights, output.shape, x.dtype)

    def run(
        x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None
    ) -> Tensor:
        folded = x if batch == 1 else _fold(x)
        y = torch.convolution(folded, mix(weight, routing_weights), None, *convolution)
        y = y if batch == 1 else _unfold(y, batch)
        return output.form(y if bias is None else shift(y, bias, routing_weights))

    return run


def _prepare_one(x: Tensor, *rest: Any) -> Runner | None:
    return prepare(x, *rest) if x.shape[0] == 1 else None


def why_not_grouped(problem: Problem) -> str | None:
    """Return why folding the batch into the groups cannot run, or `None`."""
    return "groups = batch would fix the exported graph to one batch size" if problem.exporting else None


def why_not_loop(problem: Problem) -> str | None:
    """Return why one library convolution per example cannot run, or `None`."""
    if problem.exporting:
        return "its loop over the examples would fix the exported graph to one batch size"
    return None


_ALL, _ONE_BY_ONE = MixedKernels(apply, apply_backward), MixedKernels(apply, apply_backward, chunk=1)
GROUPED = Implementation("grouped", why_not_grouped, _ALL.forward, _ALL.backward, prepare)
LOOP = Implementation("loop", why_not_loop, _ONE_BY_ONE.forward, _ONE_BY_ONE.backward, _prepare_one)
"""One example at a time keeps a single mixed kernel alive, in cache if it is small."""
