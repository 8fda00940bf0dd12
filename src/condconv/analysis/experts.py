"""How similar the experts of a layer are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from condconv.nn import ConditionalLayer

DUPLICATE_SIMILARITY = 0.99
"""Two experts whose kernels have this cosine similarity or more, in every layer, are duplicates."""


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
    kernels = kernels / kernels.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    gram = (kernels @ kernels.mT).double().cpu()  # of entries up to 1, or the squares of large ones would overflow
    norms = gram.diagonal().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return (gram / norms[:, None] / norms).clamp(-1, 1)


def duplicate_experts(similarity: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the pairs of experts that are duplicates, the lower number first.

    Args:
        similarity: `[E, E]`, of `expert_similarity`.
    """
    alike = (similarity >= DUPLICATE_SIMILARITY).triu(diagonal=1)
    return tuple((first, second) for first, second in alike.nonzero().tolist())
