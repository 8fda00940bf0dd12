"""The paper's other form: convolve with every expert, then mix the outputs. E convolutions, no kernel per example.

Right where the output has one pixel (a classifier), where E is 1, and where a run-time wants constant kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry
from condconv.ops.mixing import accumulation_dtype, mix_bias


def _side_by_side(weight: Tensor, geometry: Geometry) -> Tensor:
    """Lay the experts along the output channels, the groups outermost as torch's convolution wants them."""
    groups = geometry.groups
    if geometry.transposed:  # [E, C, O/G, *K] -> [C, E * O/G, *K]
        return weight.transpose(0, 1).flatten(1, 2)
    grouped = weight.unflatten(1, (groups, weight.shape[1] // groups))  # [E, G, O/G, C/G, *K]
    return grouped.transpose(0, 1).flatten(0, 2)  # [G * E * O/G, C/G, *K]


def forward(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve once with all experts and take the weighted sum of the outputs in fp32 (fp64 for fp64).

    Shapes as in `reference.forward`. Keeps the E outputs for the gradient of the routing weights.
    """
    wide = accumulation_dtype(x.dtype)
    num_experts = weight.shape[0]
    outputs = geometry.convolve(x, _side_by_side(weight.to(x.dtype), geometry))  # [B, G * E * O/G, *S]
    per_expert = outputs.shape[1] // (geometry.groups * num_experts)
    outputs = outputs.unflatten(1, (geometry.groups, num_experts, per_expert))
    mixed = torch.einsum("be,bgeo...->bgo...", routing_weights.to(wide), outputs.to(wide)).flatten(1, 2)
    if bias is not None:
        mixed = mixed + mix_bias(bias, routing_weights, wide, len(geometry.stride))
    return mixed.to(x.dtype)
