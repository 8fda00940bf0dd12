"""One kernel with routed gains, and a few channels that are mixed by a routed matrix: dynamic channel fusion, DCD."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.experts.base import Geometry, KernelSpec, MixCost
from condconv.nn.experts.one_kernel import OneKernelExperts
from condconv.nn.experts.parts import along, mix_channels, pointwise
from condconv.nn.heads import Part
from condconv.ops.quantized import along_outputs
from condconv.ops.validation import check_routing_weights, check_tensors


class DecomposedExperts(OneKernelExperts):
    """One kernel, and few channels mixed by a matrix from routing: `W(x) = A(x) W0 + P Phi(x) Q`.

    `A` has a gain for each output channel, and `Phi` `[R, R]` comes from the routing function as it is; both are parts
    of the routing vector. `P Phi Q` belongs to the kernel's centre. No kernel is computed for an example.

    Args:
        spec: The kernel, of a layer without groups that is not transposed.
        num_experts: 1, since there is one kernel.
        device: Of the parameters.
        dtype: Of the parameters.
        rank: R; `None` for the root of the number of input channels, rounded down.

    Attributes:
        weight: W0, `[*shape]`.
        bias: `[O]`, or `None`; not routed.
        down: Q, `[R, C]`.
        up: P, `[O, R]`.

    Raises:
        UsageError: The layer has groups or is transposed, there are several experts, or `rank` is not a count up to C.

    Source:
        DCD (arXiv:2103.08756), sections 3 and 4; kernels of several taps as in the authors' code. Deviations: no batch
        norms inside, and twice a sigmoid for the hard sigmoid.
    """

    linear = False
    why_not_fewer = "the size of their routing vector follows from their rank"
    for_some_layers = True  # depthwise layers stay static in the paper

    def __init__(
        self,
        spec: KernelSpec,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
    ) -> None:
        where: Any = {"device": device, "dtype": dtype}
        super().__init__(spec, num_experts, **where)
        self.rank = _rank(spec, rank)
        if num_experts != 1:
            raise UsageError(
                f"`num_experts` must be 1 for decomposed experts, got {num_experts}: they are one kernel, whose "
                "routed part has the size `rank`"
            )
        self.parts = (Part("core", self.rank**2, "linear"), Part("outputs", spec.out_channels, "gain"))
        self.down = nn.Parameter(torch.empty(self.rank, spec.shape[1], **where))
        self.up = nn.Parameter(torch.empty(spec.out_channels, self.rank, **where))
        self._taps = spec.shape[2:]
        self._dim = -1 if len(spec.shape) == 2 else 1

    @torch.no_grad()
    def _draw_parts_(self, expert_spread: float) -> None:
        # Of zeros neither would ever get a gradient; Phi is 0 at the start.
        self.down.normal_().mul_(self.down.shape[1] ** -0.5)
        self.up.normal_().mul_(self.rank**-0.5)

    def _core(self, routing_weights: Tensor) -> Tensor:
        return self.split(routing_weights)["core"].unflatten(1, (self.rank, self.rank))

    def mix(self, routing_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        dtype = routing_weights.dtype
        kernels = self.weight.to(dtype).expand(len(routing_weights), *self.spec.shape)
        kernels = kernels * along_outputs(self.split(routing_weights)["outputs"], kernels, 1, False)
        added = self.up.to(dtype) @ self._core(routing_weights) @ self.down.to(dtype)  # [B, O, C]
        centre = torch.zeros(self._taps, dtype=dtype, device=added.device)
        centre[tuple(size // 2 for size in self._taps)] = 1
        kernels = kernels + added[(..., *(None,) * len(self._taps))] * centre
        return kernels, None if self.bias is None else self.bias.to(dtype).expand(len(routing_weights), -1)

    def forward(self, x: Tensor, routing_weights: Tensor, geometry: Geometry, impl: str) -> Tensor:
        """See the base; there is one way, whatever `impl` is."""
        check_tensors(x, self.weight, routing_weights, self.bias)
        check_routing_weights(routing_weights, x, self.num_weights)
        y = geometry.shared(x, self.weight, None)
        y = y * along(self.split(routing_weights)["outputs"], y, self._dim)
        code = pointwise(geometry.under_centre(x, self._taps), self.down, self._dim)
        y = y + pointwise(mix_channels(code, self._core(routing_weights), self._dim), self.up, self._dim)
        return y if self.bias is None else y + along(self.bias, y, self._dim)

    def kernels(self) -> Tensor:
        """See the base; W0."""
        return self.weight[None]

    @torch.no_grad()
    def scale_outputs_(self, scale: Tensor) -> None:
        """See the base; P too."""
        super().scale_outputs_(scale)
        up = self.up.double() * scale.to(self.up.device, torch.float64)[:, None]
        self.up = nn.Parameter(up.to(self.up.dtype), self.up.requires_grad)

    def cost(self, inputs: int, outputs: int, mixtures: int) -> MixCost:
        """See the base; no mixed kernel exists, and gains are not counted."""
        around = self.down.numel() + self.rank**2 + self.up.numel()
        madds = (self.weight.numel() + around) * outputs
        return MixCost(madds, sum(each.nbytes for each in self.parameters()), 0)

    @classmethod
    def why_not(cls, spec: KernelSpec, **options: Any) -> str | None:
        """See the base."""
        try:
            _rank(spec, **{"rank": None, **options})
        except UsageError as error:
            return str(error)
        return None

    def options(self) -> str:
        """See the base."""
        return f"rank={self.rank}"


def _rank(spec: KernelSpec, rank: Any) -> int:
    """Return R of a layer.

    Raises:
        UsageError: It is not a count, or the layer has groups or is transposed.
    """
    if spec.groups > 1 or spec.transposed:
        kind = "transposed" if spec.transposed else f"groups = {spec.groups}"
        raise UsageError(
            f"`experts` must be others than decomposed ones for layers that have groups or are transposed, got {kind}: "
            "leave the layer static, or take 'modulated'"
        )
    if rank is None:
        return math.isqrt(spec.shape[1])
    if type(rank) is not int or rank < 1:
        raise UsageError(f"`rank` must be a whole number of at least 1 or None, got {shown(rank)}: None is usual")
    if rank > spec.shape[1]:
        raise UsageError(
            f"`rank` must be at most the number of input channels, {spec.shape[1]}, got {shown(rank)}: None is usual"
        )
    return rank
