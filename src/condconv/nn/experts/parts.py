"""What routing changes in a kernel that all examples share: parts of `SharedExperts`.

Each part takes centred routing weights c `[B, E]`: at c = 0 it changes nothing. It says the same twice, in the maps
(`forward`) and in the kernels (`matrix`, `factor`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return numbers of channels, `[C]` or `[B, C]`, in the dtype of x and a shape that fits its channels at `dim`."""
    values = values.to(x.dtype)
    if dim == 1:
        return values[(..., *(None,) * (x.dim() - 2))]
    return values if values.dim() == 1 else values.view(values.shape[0], *(1,) * (x.dim() - 2), values.shape[1])


def pointwise(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Map the channels of x, at `dim` (1 or -1), by `weight` `[C', C]`, for all examples and places."""
    if dim == -1:
        return F.linear(x, weight)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    y: Tensor = convolve(x, weight[(..., *(None,) * (x.dim() - 2))])
    return y


def mix_channels(x: Tensor, matrices: Tensor, dim: int) -> Tensor:
    """Map the channels of each example of x, at `dim`, by its own matrix, of `[B, C', C]`."""
    matrices = matrices.to(x.dtype)
    if dim == 1:
        return torch.bmm(matrices, x.flatten(2)).unflatten(2, x.shape[2:])
    rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
    return torch.bmm(rows, matrices.mT).view(*x.shape[:-1], matrices.shape[1])


def routed(c: Tensor, each: Tensor) -> Tensor:
    """Return `sum_e c_e each_e`, `[B, ...]`, for c `[B, E]` and tensors of experts `[E, ...]`, in the dtype of c."""
    return (c @ each.to(c.dtype).flatten(1)).view(c.shape[0], *each.shape[1:])


class Gains(nn.Module):
    """A factor per channel, `1 + c G`: what squeeze-and-excitation does, as ODConv-1x and WeightNet do.

    Attributes:
        weight: G, `[E, C]`.
    """

    def __init__(self, num_experts: int, channels: int, **where: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, channels, **where))

    @torch.no_grad()
    def draw_(self, spread: float) -> None:
        """Draw G so that a routed kernel differs by `spread` times its own standard deviation per unit of c."""
        self.weight.normal_().mul_(spread)

    def factor(self, c: Tensor) -> Tensor:
        """Return the factors `[B, C]`."""
        return 1 + c @ self.weight.to(c.dtype)

    def forward(self, x: Tensor, c: Tensor, dim: int) -> Tensor:
        """Multiply the channels of x, at `dim`."""
        return x * along(self.factor(c), x, dim)

    def madds(self, mixtures: int) -> int:
        """Return the multiply-adds of the factors."""
        return self.weight.numel() * mixtures


class FullMixing(nn.Module):
    """Channels that are mixed before the kernel, `I + sum_e c_e M_e`.

    Attributes:
        weight: M, `[E, C, C]`.
    """

    def __init__(self, num_experts: int, channels: int, **where: Any) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(num_experts, channels, channels, **where))

    @torch.no_grad()
    def draw_(self, spread: float) -> None:
        """Draw M; see `Gains.draw_`."""
        self.weight.normal_().mul_(spread / self.channels**0.5)

    def matrix(self, c: Tensor) -> Tensor:
        """Return what is added to the identity, `[B, C, C]`."""
        return routed(c, self.weight)

    def forward(self, x: Tensor, c: Tensor, dim: int) -> Tensor:
        """Return x with its channels, at `dim`, mixed."""
        return x + mix_channels(x, self.matrix(c), dim)

    def madds(self, places: int, mixtures: int) -> int:
        """Return the multiply-adds on maps with this number of places in all."""
        return self.channels**2 * places + self.weight.numel() * mixtures


class LowRankMixing(nn.Module):
    """Channels that are mixed before the kernel through R others, `I + Q (sum_e c_e S_e) P`.

    In the maps: two pointwise convolutions that all examples share, and between them R channels per example.

    Attributes:
        down: P, `[R, C]`.
        core: S, `[E, R, R]`.
        up: Q, `[C, R]`.
        active: How many of the first of the R channels are computed with; `None` for all.

    Source:
        Tucker decompositions of experts, as in DCD (arXiv:2103.08756), applied to the channels.
    """

    active: int | None = None

    def __init__(self, num_experts: int, channels: int, rank: int, **where: Any) -> None:
        super().__init__()
        self.channels, self.rank = channels, rank
        self.down = nn.Parameter(torch.empty(rank, channels, **where))
        self.core = nn.Parameter(torch.empty(num_experts, rank, rank, **where))
        self.up = nn.Parameter(torch.empty(channels, rank, **where))

    @torch.no_grad()
    def draw_(self, spread: float) -> None:
        """Draw all three at random; see `Gains.draw_`. Of zeros none would ever get a gradient."""
        self.down.normal_().mul_(self.channels**-0.5)
        self.up.normal_().mul_(self.channels**-0.5)
        self.core.normal_().mul_(spread * self.channels**0.5 / self.rank)

    def _first(self, number: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return P, S and Q of the first channels; `None` for all."""
        if number is None:
            return self.down, self.core, self.up
        return self.down[:number], self.core[:, :number, :number], self.up[:, :number]

    @torch.no_grad()
    def keep_(self, number: int) -> None:
        """Remove all but the first channels, in place."""
        learns = self.core.requires_grad
        self.down, self.core, self.up = (nn.Parameter(each.clone(), learns) for each in self._first(number))
        self.rank = len(self.down)

    def matrix(self, c: Tensor) -> Tensor:
        """Return what is added to the identity, `[B, C, C]`."""
        down, core, up = self._first(self.active)
        return up.to(c.dtype) @ routed(c, core) @ down.to(c.dtype)

    def forward(self, x: Tensor, c: Tensor, dim: int) -> Tensor:
        """Return x with its channels, at `dim`, mixed."""
        down, core, up = self._first(self.active)
        cores = routed(c, core)
        if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            # Two products of matrices that read x as it lies: up to 1.8 times as fast as convolutions this narrow.
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, N, C]
            lift = (up.to(c.dtype) @ cores).to(x.dtype)
            mixed = torch.baddbmm(rows, rows @ down.T, lift.mT)
            return mixed.view(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        code = mix_channels(pointwise(x, down, dim), cores, dim)
        return x + pointwise(code, up, dim)

    def madds(self, places: int, mixtures: int) -> int:
        """Return the multiply-adds on maps with this number of places in all."""
        return (2 * self.channels + self.rank) * self.rank * places + self.core.numel() * mixtures
