"""Routing functions in four dimensions, which delegates on phones need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condconv.convert.surgery import replace
from condconv.nn import HiddenRouting, SigmoidRouting, SoftmaxRouting, TopKRouting
from condconv.nn.block_routing import routing_functions
from condconv.nn.float32_linear import Float32Linear

_ALONG_CHANNELS = (SigmoidRouting, SoftmaxRouting, HiddenRouting)
"""Routing functions that work along dimension 1 only, whatever follows it."""


class Router4d(nn.Module):
    """A routing function whose pooled input keeps height and width, 1 x 1, and whose linear layers are convolutions.

    Delegates for images support the mean over height and width and the convolution, but not the two-dimensional mean,
    which would split the graph. For top-k routing only the mean is changed.
    """

    def __init__(self, routing_fn: Any) -> None:
        super().__init__()
        self.weighing = routing_fn
        self.num_experts = routing_fn.num_experts
        self.is_flat = type(routing_fn) not in _ALONG_CHANNELS
        linears = ((routing_fn, "hidden"), (routing_fn, "fc"), (routing_fn.heads, "linear"))
        for owner, name in () if self.is_flat else linears:
            if getattr(owner, name, None) is not None:
                setattr(owner, name, _as_convolution(getattr(owner, name)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the routing weights `[B, E]` of x `[B, C, *S]`."""
        image = x if x.dim() == 4 else x.reshape(x.shape[0], x.shape[1], 1, -1)
        pooled = self.weighing.standardize(image.mean((2, 3), keepdim=True))
        if not self.is_flat:
            return self.weighing.route(pooled).flatten(1)
        code = self.weighing.encode(pooled.flatten(1))
        return self.weighing.join(_weigh_top_k(self.weighing, code), code)


def _weigh_top_k(routing_fn: TopKRouting, code: Tensor) -> Tensor:
    """Return the weights `[B, E]` of `routing_fn.weigh` without a scatter, which CoreML's converter does not have."""
    top = routing_fn.fc(code).topk(routing_fn.k, dim=1)
    chosen = top.indices[..., None] == torch.arange(routing_fn.num_experts)
    return (chosen * top.values.softmax(1)[..., None]).sum(1)


def _as_convolution(linear: Float32Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach()[..., None, None].clone())
    conv.bias = nn.Parameter(linear.bias.detach().clone())
    return conv


def use_4d_routers_(model: nn.Module) -> None:
    """Replace routing functions by `Router4d` where possible, in place; the others stay."""
    for routing_fn in set(routing_functions(model).values()):
        if type(routing_fn) in (*_ALONG_CHANNELS, TopKRouting):
            replace(model, routing_fn, Router4d(routing_fn))
