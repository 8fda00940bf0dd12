"""The paper's other form: convolve with every expert, then mix the outputs. E convolutions, no kernel per example.

Right where the output has one pixel (a classifier), where E is 1, and where a run-time wants constant kernels. From one
pixel to one pixel the E convolutions are one matrix product, which libraries do several times as fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from condconv.ops.geometry import Geometry
from condconv.ops.implementation import Implementation
from condconv.ops.mixing import accumulation_dtype, mix_bias
from condconv.ops.problem import Problem
from condconv.ops.recording import plain_shape


def _side_by_side(weight: Tensor, geometry: Geometry) -> Tensor:
    """Lay the experts along the output channels, the groups outermost as torch's convolution wants them."""
    groups = geometry.groups
    if geometry.transposed:  # [E, C, O/G, *K] -> [C, E * O/G, *K]
        return weight.transpose(0, 1).flatten(1, 2)
    grouped = weight.unflatten(1, (groups, weight.shape[1] // groups))  # [E, G, O/G, C/G, *K]
    return grouped.transpose(0, 1).flatten(0, 2)  # [G * E * O/G, C/G, *K]


def _is_product(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Return whether one pixel goes to one pixel, every channel to every other."""
    if geometry.transposed or geometry.groups > 1 or any(geometry.padding):
        return False
    # The kernel's size first: it is a number also where a graph leaves that of x open.
    return all(size == 1 for size in (*plain_shape(weight)[3:], *plain_shape(x)[2:]))


def _mix_products(x: Tensor, weight: Tensor, weights: Tensor) -> Tensor:
    """Return what `_mix_convolutions` does, of one pixel: `[B, O]`."""
    outputs = F.linear(x.flatten(1), weight.flatten(2).flatten(0, 1)).unflatten(1, weight.shape[:2])
    return (weights[:, None] @ outputs.to(weights.dtype))[:, 0]


def _mix_convolutions(x: Tensor, weight: Tensor, weights: Tensor, geometry: Geometry) -> Tensor:
    """Return the sum of the experts' outputs `[B, O, *S]`, weighted with `weights` `[B, E]`, in their dtype."""
    num_experts = weight.shape[0]
    outputs = geometry.convolve(x, _side_by_side(weight, geometry))  # [B, G * E * O/G, *S]
    per_expert = outputs.shape[1] // (geometry.groups * num_experts)
    outputs = outputs.unflatten(1, (geometry.groups, num_experts, per_expert))
    return torch.einsum("be,bgeo...->bgo...", weights, outputs.to(weights.dtype)).flatten(1, 2)


def forward(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve once with all experts and take the weighted sum of the outputs in fp32 (fp64 for fp64).

    Shapes as in `reference.forward`. Keeps the E outputs for the gradient of the routing weights.
    """
    wide, dtype = accumulation_dtype(x.dtype), x.dtype
    if dtype == torch.float16 and len(weight) > 1:
        x = x.to(wide)  # an expert that an example does not use may overflow, and infinity times zero is no number
    weight, weights, dims = weight.to(x.dtype), routing_weights.to(wide), len(geometry.stride)
    if _is_product(x, weight, geometry):
        mixed = _mix_products(x, weight, weights)[(..., *(None,) * dims)]
    else:
        mixed = _mix_convolutions(x, weight, weights, geometry)
    if bias is not None:
        mixed = mixed + mix_bias(bias, routing_weights, wide, dims)
    return mixed.to(dtype)


def why_not(problem: Problem) -> str | None:
    """Return `None`: one static convolution runs anywhere."""
    return None


MIX_OUTPUTS = Implementation("mix_outputs", why_not, forward)
