"""Fit a few channels or kernels to what trained experts differ by, weighted by what the routing does."""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.nn.experts.base import Experts

_SWEEPS = 20  # of alternating improvements, of which the first few bring nearly all
_LEAST = 1e-9  # of the largest variance: directions that the routing never takes, which decide only among equal fits


def differences(experts: Experts, at: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return by what a unit of each routing weight moves linear experts, in fp64: `[E, *shape]`, `[E, O]` or `None`.

    Args:
        experts: Linear ones.
        at: Routing weights `[E]`, fp64.
    """
    kernels, biases = experts.mix(torch.cat([at[None], at + torch.eye(len(at), dtype=at.dtype, device=at.device)]))
    return kernels[1:] - kernels[0], None if biases is None else biases[1:] - biases[0]


def root_of(covariance: Tensor) -> Tensor:
    """Return rows `[E, E]` whose squares add up to a covariance of routing weights: what these do, one by one."""
    variances, directions = torch.linalg.eigh(covariance)
    return variances.clamp_min(_LEAST * variances.max()).sqrt()[:, None] * directions.mT


def low_rank_with(stack: Tensor, root: Tensor, rank: int, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return U, S, V and factors u with the least error of `u_e W0 + U S_e V` from what experts differ by.

    W0 itself is of full rank, so multiples of it would take all channels.

    Args:
        stack: `[E, O, N]`, fp64.
        root: `root_of` the covariance of the routing weights.
        rank: R, at most O and N.
        kernel: W0, `[O, N]`.

    Returns:
        U `[O, R]` and V `[R, N]`, both orthonormal, between them S `[E, R, R]`; and u `[E]`.

    Source:
        Higher-order orthogonal iteration, De Lathauwer et al. (2000), of a Tucker decomposition whose first mode is
        left as it is; after each turn S and u are the best for these U and V.
    """
    factors = (stack * kernel).sum((1, 2), keepdim=True) / kernel.square().sum()
    rest = torch.tensordot(root, stack - factors * kernel, dims=1)
    outputs = rest.movedim(1, 0).flatten(1)  # [O, E * N]
    up = torch.linalg.eigh(outputs @ outputs.mT).eigenvectors[:, -rank:]
    for _ in range(_SWEEPS):
        down = torch.linalg.svd((up.mT @ rest).flatten(0, 1), full_matrices=False).Vh[:rank]
        up = torch.linalg.svd((rest @ down.mT).movedim(1, 0).flatten(1), full_matrices=False).U[:, :rank]
        free = kernel - up @ (up.mT @ kernel @ down.mT) @ down  # what the channels cannot give
        norm = free.square().sum()
        if not norm > _LEAST * kernel.square().sum():
            factors = torch.zeros_like(factors)
            break
        factors = (stack * free).sum((1, 2), keepdim=True) / norm
        rest = torch.tensordot(root, stack - factors * kernel, dims=1)
    return up, up.mT @ (stack - factors * kernel) @ down.mT, down, factors.flatten()


def relative_error(exact: Experts, fitted: Experts, mean: Tensor, root: Tensor) -> float:
    """Return the root mean square error of an input's kernel over its root mean square.

    Args:
        exact: Linear experts.
        fitted: Others, linear too.
        mean: Mean routing weights `[E]`, fp64.
        root: `root_of` their covariance.
    """
    at = torch.cat([mean[None], mean + root])
    mixed = exact.mix(at)[0]
    wrong = fitted.mix(at)[0] - mixed
    # The mean, and what each direction adds to it: squares add up, since directions are uncorrelated.
    true, error = (torch.cat([each[:1], each[1:] - each[:1]]) for each in (mixed, wrong))
    norm = true.norm().item()
    return error.norm().item() / norm if norm else 0.0
