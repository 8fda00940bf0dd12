"""Standardising the input of a routing function over images, so that it learns at the common rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

_Self = TypeVar("_Self", bound="Standardization")


class Standardization(nn.Module):
    """`(x - mean) / sqrt(var + eps)` per channel, with running statistics in training too.

    A router's gradient grows with the variance of its pooled input over images, which is small after norms and ReLU,
    next to a mean that only shifts all images alike. Statistics of the batch would make examples depend on each other
    and fail at batch 1; running ones do neither. In training they are updated first, without a gradient. The first
    `1 / momentum` updates are a plain average. Values that are not finite are not taken up, nor is what activation
    checkpointing recomputes: that is normalised as in forward, if there was no other forward in between.

    Args:
        channels: C.
        momentum: Share of the newest batch in the running statistics.
        eps: Added to the variance, so that channels without any stay at 0.
        device: Of the statistics.

    Attributes:
        mean: `[C]`, fp32 or fp64, also in a model of bf16 or fp16.
        var: `[C]`, of the same dtype, over examples, biased.
        updates: How often they were updated, a scalar.

    Source:
        Running statistics in training: batch renormalisation (arXiv:1702.03275) in the limit of none of the batch's.
    """

    mean: Tensor
    var: Tensor
    updates: Tensor

    def __init__(
        self, channels: int, momentum: float = 0.05, eps: float = 1e-5, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        for name, shape in (("mean", (channels,)), ("var", (channels,)), ("updates", ())):
            self.register_buffer(name, torch.empty(shape, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget all images, in place: the input then passes as it is."""
        self.mean.zero_()
        self.var.fill_(1)
        self.updates.zero_()

    def forward(self, pooled: Tensor) -> Tensor:
        """Return `[B, C, ...]` standardised along C, in its dtype."""
        if self.training and pooled.numel() and not _is_recomputed():
            self._update(pooled.detach().flatten(2).mean(2) if pooled.dim() > 2 else pooled.detach())
        along = (..., *(None,) * (pooled.dim() - 2))
        scale = torch.rsqrt(self.var + self.eps)
        return (pooled - self.mean.to(pooled.dtype)[along]) * scale.to(pooled.dtype)[along]

    @torch.no_grad()
    def _update(self, pooled: Tensor) -> None:
        """Take up a batch `[B, C]`, of one example too: what it is off the mean is part of the variance."""
        pooled = pooled.to(self.var.dtype)
        share = (1 / (self.updates + 1)).clamp(min=self.momentum)
        off = pooled.mean(0) - self.mean
        within = pooled.var(0, correction=0)
        var = torch.lerp(self.var, within, share) + share * (1 - share) * off.square()
        is_good = off.isfinite().all() & within.isfinite().all()
        self.var.copy_(torch.where(is_good, var, self.var))
        self.mean.copy_(torch.where(is_good, self.mean + share * off, self.mean))
        self.updates += is_good

    def _apply(self: _Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Self:
        # A model in bf16 or fp16 keeps them in fp32: a mean in bf16 would not move by a twentieth of a small change.
        def apply_to_statistics(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            narrower = applied.dtype.itemsize < tensor.dtype.itemsize and applied.dtype.itemsize < 4
            return torch.empty_like(applied, dtype=torch.float32).copy_(tensor) if narrower else applied

        super()._apply(apply_to_statistics, recurse)
        return self


def _is_recomputed() -> bool:
    """Return whether this call is within a backward pass, as those of activation checkpointing are."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
