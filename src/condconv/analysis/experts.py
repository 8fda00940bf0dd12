"""How similar the experts of a layer are, and what its kernel is a sum of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from condconv.nn import ConditionalLayer

DUPLICATE_SIMILARITY = 0.99
"""Two experts whose kernels have this cosine similarity or more, in every layer, are duplicates."""
_TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def expert_similarity(layers: Iterable[ConditionalLayer]) -> Tensor:
    """Return the cosine similarity of the experts' kernels, the lowest over layers that share a routing.

    Args:
        layers: Layers with the same number of experts, at least one.

    Returns:
        `[E, E]` fp64 on the CPU, 1 on the diagonal; 0 for a kernel of zeros.
    """
    found = [_similarity(layer.experts.kernels().flatten(1)) for layer in layers]
    return torch.stack(found).amin(0)


def _similarity(kernels: Tensor) -> Tensor:
    kernels = kernels.float()  # a copy in fp64 would be twice the layer
    gram = _products(kernels, kernels.abs().amax(1, keepdim=True))
    norms = gram.diagonal().sqrt().clamp(min=_TINY)
    return (gram / norms[:, None] / norms).clamp(-1, 1)


@torch.no_grad()
def kernel_products(layer: ConditionalLayer) -> Tensor | None:
    """Return the scalar products of the terms of a layer's kernel, `W(r) = T_0 + sum_e r_e T_e`, up to a factor.

    From these and the moments of the routing weights r follows how much the kernels of examples differ, without any
    example's kernel.

    Returns:
        `[1 + E, 1 + E]` fp64 on the CPU, all divided by one number; None if the kernel is not linear in r.
    """
    experts = layer.experts
    if not experts.linear:
        return None
    device = next(experts.parameters()).device
    at = F.pad(torch.eye(experts.num_experts, device=device), (0, 0, 1, 0))  # no weight, then one of 1
    kernels = experts.mix(at)[0].flatten(1)
    terms = torch.cat([kernels[:1], kernels[1:] - kernels[0]])
    return _products(terms, terms.abs().amax())


def _products(kernels: Tensor, sizes: Tensor) -> Tensor:
    """Return the scalar products of fp32 kernels over their sizes: without these, squares of large ones overflow."""
    kernels = kernels / sizes.clamp(min=_TINY)
    return (kernels @ kernels.mT).double().cpu()


def duplicate_experts(similarity: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the pairs of experts that are duplicates, the lower number first.

    Args:
        similarity: `[E, E]`, of `expert_similarity`.
    """
    alike = (similarity >= DUPLICATE_SIMILARITY).triu(diagonal=1)
    return tuple((first, second) for first, second in alike.nonzero().tolist())
