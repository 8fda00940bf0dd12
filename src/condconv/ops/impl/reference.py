"""The definition: every example is convolved with its own weighted sum of the experts.

out[b] = conv(x[b], sum_e r[b, e] * W[e]) + sum_e r[b, e] * bias[e]

Source: CondConv, section 3, equation 1. Every other implementation is tested against this one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry
from condconv.ops.implementation import Implementation
from condconv.ops.mixing import accumulation_dtype
from condconv.ops.problem import Problem


def forward(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve the examples one by one, in fp32 (fp64 for fp64), and round the output once to `x.dtype`.

    Shapes: x `[B, C, *S]`, weight `[E, O, C/G, *K]` (transposed: `[E, C, O/G, *K]`), routing_weights
    `[B, E]`, bias `[E, O]`; returns `[B, O, *S']`.
    """
    wide = accumulation_dtype(x.dtype)
    examples, experts, weights = x.to(wide), weight.to(wide), routing_weights.to(wide)
    if x.shape[0] == 0:
        # Nothing to loop over; one convolution of no examples keeps the shape and the autograd graph.
        examples, weights = examples[None], weights.sum(0, keepdim=True)
    else:
        examples = examples[:, None]
    outputs = []
    for example, mixture in zip(examples, weights, strict=True):
        kernel = torch.tensordot(mixture, experts, dims=1)
        output = geometry.convolve(example, kernel)
        if bias is not None:
            shift = torch.tensordot(mixture, bias.to(wide), dims=1)
            output = output + shift[(..., *(None,) * len(geometry.stride))]
        outputs.append(output)
    return torch.cat(outputs).to(x.dtype)


def why_not(problem: Problem) -> str | None:
    """Return why it cannot run, or `None`."""
    return "its loop over the examples would fix the graph to one batch size" if problem.compiling else None


REFERENCE = Implementation("reference", why_not, forward)
