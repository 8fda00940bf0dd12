"""Kernels that routing adds to one that all examples share: further parts of `SharedExperts`.

Each takes centred routing weights c `[B, E]`, adds nothing at c = 0, and is linear in c, so it can be fitted to what
trained experts differ by.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.nn.experts.base import Geometry, KernelSpec
from condconv.nn.experts.fitting import low_rank_with
from condconv.nn.experts.parts import along, mix_channels, pointwise, routed
from condconv.ops.quantized import along_outputs


class LowRankKernel(nn.Module):
    """A kernel through R channels, `U (sum_e c_e S_e) V`, of layers without groups.

    In the maps: an ordinary convolution V to R channels, a small matrix per example, a pointwise convolution U.

    Attributes:
        down: V, as the weight of the layer with R outputs: `[R, C, *K]`, transposed `[C, R, *K]`, linear `[R, C]`.
        bias: `[R]`, added to what V gives, so that biases are routed too; `None` for a layer without biases.
        core: S, `[E, R, R]`.
        up: U, `[O, R]`.
        active: How many of the first of the R channels are computed with; `None` for all.

    Source:
        Tucker decompositions of experts, as in DCD (arXiv:2103.08756).
    """

    bias: nn.Parameter | None
    active: int | None = None

    def __init__(self, spec: KernelSpec, num_experts: int, rank: int, **where: Any) -> None:
        super().__init__()
        self.rank = rank
        self._axis = 1 if spec.transposed else 0  # of the outputs in a kernel
        shape = list(spec.shape)
        shape[self._axis] = rank
        self.down = nn.Parameter(torch.empty(shape, **where))
        self.register_parameter("bias", nn.Parameter(torch.empty(rank, **where)) if spec.bias else None)
        self.core = nn.Parameter(torch.empty(num_experts, rank, rank, **where))
        self.up = nn.Parameter(torch.empty(spec.out_channels, rank, **where))

    @torch.no_grad()
    def draw_(self, spread: float, kernel: Tensor) -> None:
        """Draw all three at random: per unit of c the kernel changes by about `spread` times the norm of `kernel`.

        U and V have nearly orthogonal columns and rows of norm 1. So S has all of the scale: with a common learning
        rate, a routed part of a smaller one was seen to hardly grow.
        """
        self.up.normal_().mul_(len(self.up) ** -0.5)
        self.down.normal_().mul_((self.rank / self.down.numel()) ** 0.5)
        self.core.normal_().mul_(spread / self.rank).mul_(kernel.norm())
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def fit_(self, deltas: Tensor, biases: Tensor | None, root: Tensor, kernel: Tensor) -> Tensor:
        """Take the nearest kernels to those that experts differ by, in place, besides multiples of a shared one.

        Args:
            deltas: `[E, *shape]`, fp64.
            biases: `[E, O]`, or `None`.
            root: `root_of` the covariance of the routing weights.
            kernel: The shared one, `[*shape]`.

        Returns:
            The multiple that each expert has of the shared one, `[E]`.
        """
        stack, flat = deltas.movedim(self._axis + 1, 1).flatten(2), kernel.movedim(self._axis, 0).flatten(1)
        if biases is not None:  # as the weight of an input that is always 1
            stack, flat = torch.cat([stack, biases[:, :, None]], 2), F.pad(flat, (0, 1))
        up, core, down, factors = low_rank_with(stack, root, self.rank, flat)
        self.up.copy_(up)
        self.core.copy_(core)
        if self.bias is not None:
            self.bias.copy_(down[:, -1])
            down = down[:, :-1]
        moved = self.down.movedim(self._axis, 0)
        moved.copy_(down.reshape(moved.shape))
        return factors

    def _first(self, number: int | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return V, its bias, S and U of the first channels; `None` for all."""
        if number is None:
            return self.down, self.bias, self.core, self.up
        down = self.down[:, :number] if self._axis else self.down[:number]
        bias = None if self.bias is None else self.bias[:number]
        return down, bias, self.core[:, :number, :number], self.up[:, :number]

    @torch.no_grad()
    def keep_(self, number: int) -> None:
        """Remove all but the first channels, in place."""
        learns = self.core.requires_grad
        kept = (None if each is None else nn.Parameter(each.clone(), learns) for each in self._first(number))
        self.down, self.bias, self.core, self.up = kept  # type: ignore[assignment]
        self.rank = self.core.shape[1]

    def kernels(self, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is added to the kernel, `[B, *shape]`, and to the bias, `[B, O]` or `None`."""
        down, bias, core, up = self._first(self.active)
        lift, down = up.to(c.dtype) @ routed(c, core), down.to(c.dtype)
        down = down.movedim(self._axis, 0)
        added = (lift @ down.flatten(1)).unflatten(2, down.shape[1:]).movedim(1, self._axis + 1)
        return added, None if bias is None else lift @ bias.to(c.dtype)

    def forward(self, x: Tensor, c: Tensor, geometry: Geometry, dim: int) -> Tensor:
        """Return what is added to the layer's output, whose channels are at `dim`."""
        down, bias, core, up = self._first(self.active)
        code, cores = geometry.shared(x, down, bias), routed(c, core)
        if code.dim() == 4 and not code.is_contiguous() and code.is_contiguous(memory_format=torch.channels_last):
            lift = (up.to(c.dtype) @ cores).to(code.dtype)
            rows = code.permute(0, 2, 3, 1).flatten(1, 2) @ lift.mT  # it is read as it lies
            return rows.view(code.shape[0], *code.shape[2:], rows.shape[2]).permute(0, 3, 1, 2)
        return pointwise(mix_channels(code, cores, dim), up, dim)

    def scale_outputs_(self, scale: Tensor) -> None:
        """Multiply what is added along its channels, in place, by fp64 `[O]`."""
        self.up = nn.Parameter((self.up.double() * scale[:, None]).to(self.up.dtype), self.up.requires_grad)

    def madds(self, inputs: int, outputs: int, mixtures: int) -> int:
        """Return the multiply-adds for a number of places of input and output."""
        places = inputs if self._axis else outputs
        lifted = (self.rank + len(self.up)) * self.rank * outputs
        return self.down.numel() * places + lifted + self.core.numel() * mixtures


class Kernels(nn.Module):
    """A few whole kernels, `sum_k (c code)_k P_k`: fewer than there are experts; each is convolved with.

    Attributes:
        weight: P, `[K * shape[0], *shape[1:]]`, one below the other: of four dimensions where a static weight has four,
            which is what memory formats are for.
        bias: `[K, O]`, or `None`.
        code: `[E, K]`, what each expert has of them.
        active: How many of the first of the K kernels are computed with; `None` for all.
    """

    bias: nn.Parameter | None
    active: int | None = None

    def __init__(self, spec: KernelSpec, num_experts: int, count: int, **where: Any) -> None:
        super().__init__()
        self._spec = spec
        self.rank = count
        self.weight = nn.Parameter(torch.empty(count * spec.shape[0], *spec.shape[1:], **where))
        bias = nn.Parameter(torch.empty(count, spec.out_channels, **where)) if spec.bias else None
        self.register_parameter("bias", bias)
        self.code = nn.Parameter(torch.empty(num_experts, count, **where))

    @torch.no_grad()
    def draw_(self, spread: float, kernel: Tensor) -> None:
        """Draw at random: per unit of c the kernel changes by about `spread` times the norm of `kernel`."""
        self.weight.normal_().mul_(kernel.numel() ** -0.5).mul_(kernel.norm())
        self.code.normal_().mul_(spread / self.rank**0.5)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def fit_(self, deltas: Tensor, biases: Tensor | None, root: Tensor, kernel: Tensor) -> Tensor:
        """Take the principal kernels of those that experts differ by, in place; see `LowRankKernel.fit_`."""
        norm = kernel.norm()
        factors = deltas.flatten(1) @ kernel.flatten() / norm.square()
        rows = deltas.flatten(1) - factors[:, None] * kernel.flatten()
        rows = rows if biases is None else torch.cat([rows, biases], 1)
        principal = torch.linalg.svd(root @ rows, full_matrices=False).Vh[: self.rank]
        self.code.copy_(rows @ principal.mT / norm)
        kernels, rest = (principal * norm).split([kernel.numel(), rows.shape[1] - kernel.numel()], 1)
        self.weight.copy_(kernels.reshape(self.weight.shape))
        if self.bias is not None:
            self.bias.copy_(rest)
        return factors

    def each(self) -> Tensor:
        """Return P, `[K, *shape]`."""
        return self.weight.unflatten(0, (self.rank, -1))

    def _first(self, number: int | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return P, their biases and what each expert has of them, of the first kernels; `None` for all."""
        if number is None:
            return self.each(), self.bias, self.code
        return self.each()[:number], None if self.bias is None else self.bias[:number], self.code[:, :number]

    @torch.no_grad()
    def keep_(self, number: int) -> None:
        """Remove all but the first kernels, in place."""
        learns, (kernels, bias, code) = self.code.requires_grad, self._first(number)
        self.weight = nn.Parameter(kernels.flatten(0, 1).clone(), learns)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), learns)
        self.code = nn.Parameter(code.clone(), learns)
        self.rank = len(kernels)

    def kernels(self, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is added to the kernel, `[B, *shape]`, and to the bias, `[B, O]` or `None`."""
        kernels, bias, code = self._first(self.active)
        shares = c @ code.to(c.dtype)
        added = torch.tensordot(shares, kernels.to(c.dtype), dims=1)
        return added, None if bias is None else shares @ bias.to(c.dtype)

    def forward(self, x: Tensor, c: Tensor, geometry: Geometry, dim: int) -> Tensor:
        """Return what is added to the layer's output, whose channels are at `dim`."""
        kernels, bias, code = self._first(self.active)
        shares = c @ code.to(c.dtype)
        total: Any = 0
        for index, kernel in enumerate(kernels):
            y = geometry.shared(x, kernel, None if bias is None else bias[index])
            total = total + y * along(shares[:, index : index + 1], y, dim)
        return total

    def scale_outputs_(self, scale: Tensor) -> None:
        """Multiply what is added along its channels, in place, by fp64 `[O]`."""
        spec = self._spec
        each = self.each().double()
        scaled = (each * along_outputs(scale[None], each, spec.groups, spec.transposed)).flatten(0, 1)
        self.weight = nn.Parameter(scaled.to(self.weight.dtype), self.weight.requires_grad)
        if self.bias is not None:
            self.bias = nn.Parameter((self.bias.double() * scale).to(self.bias.dtype), self.bias.requires_grad)

    def madds(self, inputs: int, outputs: int, mixtures: int) -> int:
        """Return the multiply-adds for a number of places of input and output."""
        return self.weight.numel() * (inputs if self._spec.transposed else outputs) + self.code.numel() * mixtures
