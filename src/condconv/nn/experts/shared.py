"""One kernel that all examples share, with parts that are routed: experts for about the price of one kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError
from condconv.nn.experts.added import Kernels, LowRankKernel
from condconv.nn.experts.base import Experts, Geometry, KernelSpec, MixCost, along_inputs
from condconv.nn.experts.fitting import differences, root_of
from condconv.nn.experts.one_kernel import OneKernelExperts
from condconv.nn.experts.parts import FullMixing, Gains, LowRankMixing, along
from condconv.nn.experts.start import ROUTED_SPREAD
from condconv.nn.experts.which_parts import channels_of, resolve_parts
from condconv.ops.quantized import along_outputs
from condconv.ops.validation import check_routing_weights, check_tensors


class SharedExperts(OneKernelExperts):
    """One kernel and routed parts, `W(x) = A(x) W0 B(x) + U F(x) V`, of centred weights `c = r - centre`.

    - `B = I + Q (sum_e c_e S_e) P` mixes the input channels through `rank` others (or `sum_e c_e M_e`, rank "full").
    - `A` and `B` multiply channels by a gain each, `1 + c G`; of a depthwise layer `A` alone, which says the same.
    - `U F V` adds a kernel through `outputs` channels, `F = sum_e c_e S_e`.
    - `kernels` whole kernels are added, `sum_k (c code)_k P_k`: for layers with groups, which no low rank fits.
      With one of these two `B` has a common factor too, `1 + c u`: trained experts often learn a multiple of W0.

    A kernel per example is never mixed: the parts are small steps on the maps, before and after one ordinary
    convolution. So a layer trains, compiles and exports as an ordinary one, and reads hardly more.

    Units of smaller members of an elastic network are ranks: the first channels of `rank` and of `outputs`, and the
    first of the `kernels`. Parts without ranks, gains and whole matrices, are there in full from one rank on.

    Args:
        spec: The kernel.
        num_experts: E; experts are cheap here.
        device: Of the parameters.
        dtype: Of the parameters.
        rank: Channels through which the input channels are mixed: a number; `"full"` for a whole matrix per expert;
            or `None` for no mixing. `"auto"` for "full" in k x k layers of up to 32 channels, and for 8 in others; with
            `outputs` or `kernels` for none. Layers with groups, whose channels do not meet, have none.
        gains: Whether input and output channels have a gain each, of depthwise layers the output channels alone; layers
            with groups always have them, unless they have `kernels`.
        outputs: Channels through which a kernel is added, R; not for layers with groups.
        kernels: Whole kernels that are added, fewer than E.

    Attributes:
        weight: W0, `[*shape]`.
        bias: `[O]`, or `None`; not routed.
        centre: `[E]`, the routing weights at which the kernel is W0: those that every input has at the start.

    Raises:
        UsageError: The layer cannot have the parts that are asked for.

    Source:
        The form unites OFA's kernel transforms (arXiv:1908.09791), DCD (arXiv:2103.08756), squeeze-and-excitation
        (arXiv:1709.01507) and ODConv at one kernel (arXiv:2209.07947); the centred weights are ours: the kernel learns
        as a static one does, whatever E is.
    """

    centred = True
    unit = "ranks"
    why_not_fewer = None
    centre: Tensor

    def __init__(
        self,
        spec: KernelSpec,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | str | None = "auto",
        gains: bool = False,
        outputs: int | None = None,
        kernels: int | None = None,
    ) -> None:
        where: Any = {"device": device, "dtype": dtype}
        super().__init__(spec, num_experts, **where)
        rank, gains, outputs, kernels = resolve_parts(spec, rank, gains, outputs, kernels)
        if kernels is not None and kernels >= num_experts > 1:
            raise UsageError(
                f"`kernels` must be fewer than the {num_experts} experts, got {kernels}: give less, or take 'dense'"
            )
        channels = channels_of(spec)
        self.register_buffer("centre", torch.full((num_experts,), 0.5, **where))
        self.mixing: FullMixing | LowRankMixing | None = None
        if rank == "full":
            self.mixing = FullMixing(num_experts, channels[0], **where)
        elif rank is not None:
            self.mixing = LowRankMixing(num_experts, channels[0], int(rank), **where)
        meets_one = channels[0] == spec.groups  # a gain of its input channel is one of the output channel too
        self.input_gains = Gains(num_experts, channels[0], **where) if gains and not meets_one else None
        self.output_gains = Gains(num_experts, channels[1], **where) if gains else None
        added = not (outputs is None and kernels is None)
        self.common = Gains(num_experts, 1, **where) if added else None
        self.outputs = None if outputs is None else LowRankKernel(spec, num_experts, outputs, **where)
        self.principal = None if kernels is None else Kernels(spec, num_experts, kernels, **where)
        self._dim = -1 if len(spec.shape) == 2 else 1

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether there are no gains on both sides, which would multiply each other."""
        return self.input_gains is None

    @property
    def _added(self) -> list[LowRankKernel | Kernels]:
        """The parts that add kernels."""
        return [part for part in (self.outputs, self.principal) if part is not None]

    @property
    def _ranked(self) -> list[LowRankMixing | LowRankKernel | Kernels]:
        """The parts whose first ranks are a part by themselves."""
        return [*([self.mixing] if isinstance(self.mixing, LowRankMixing) else []), *self._added]

    @property
    def units(self) -> int:
        """See the base; the largest rank of a part, 1 if none has ranks."""
        return max((part.rank for part in self._ranked), default=1)

    def activate_(self, number: int | None) -> None:
        """See the base."""
        super().activate_(number)
        for part in self._ranked:
            part.active = self.active

    def keep_(self, number: int) -> None:
        """See the base."""
        self.activate_(None)
        for part in self._ranked:
            part.keep_(number)

    def centre_on_(self, routing_weights: Tensor) -> None:
        """See the base."""
        self.centre = routing_weights.detach().to(self.centre)

    def why_not_fit(self) -> str | None:
        """See the base."""
        if self.mixing is not None or self.output_gains is not None or not self._added:
            return "only what `outputs` and `kernels` add can be fitted: take 'shared(outputs=16)'"
        return None

    @torch.no_grad()
    def fit_(self, experts: Experts, mean: Tensor, covariance: Tensor) -> None:
        """See the base; W0 is exactly the mixture of the mean."""
        kernel, bias = experts.fold(mean)
        self.weight.copy_(kernel)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        self.centre_on_(mean)
        root, each = root_of(covariance), torch.eye(self.num_experts, dtype=mean.dtype, device=mean.device)
        deltas, biases = differences(experts, mean)
        if self.common is not None:
            self.common.weight.zero_()
        for part in self._added:
            factors = part.fit_(deltas, biases, root, kernel)
            kernels, added = part.kernels(each)
            if self.common is not None:
                self.common.weight.add_(factors[:, None])
            deltas = deltas - kernels - factors[(..., *(None,) * kernel.dim())] * kernel
            biases = None if biases is None or added is None else biases - added

    def _draw_parts_(self, expert_spread: float) -> None:
        for part in (self.mixing, self.input_gains, self.output_gains):
            if part is not None:
                part.draw_(ROUTED_SPREAD * expert_spread)
        if self.common is not None:
            self.common.draw_(0.0)
        for added in self._added:
            added.draw_(ROUTED_SPREAD * expert_spread, self.weight)

    def mix(self, routing_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        spec, dtype = self.spec, routing_weights.dtype
        c = routing_weights - self.centre.to(dtype)
        if self.active == 0:
            c = torch.zeros_like(c)
        alone = kernels = self.weight.to(dtype).expand(len(c), *spec.shape)
        if self.mixing is not None:
            added = self.mixing.matrix(c)  # [B, C, C], from channels of x to those that the kernel meets
            axis = 1 if spec.transposed else 2
            flat = kernels.movedim(axis, 1).flatten(2)  # [B, C, O * K]
            mixed = (added.mT @ flat).view(kernels.movedim(axis, 1).shape)
            kernels = kernels + mixed.movedim(1, axis)
        if self.common is not None:
            kernels = kernels + along(self.common.factor(c) - 1, alone, 1) * alone
        if self.input_gains is not None:
            kernels = kernels * along_inputs(self.input_gains.factor(c), kernels, spec)
        if self.output_gains is not None:
            kernels = kernels * along_outputs(self.output_gains.factor(c), kernels, spec.groups, spec.transposed)
        bias = None if self.bias is None else self.bias.to(dtype).expand(len(c), -1)
        for part in self._added:
            kernel, added_bias = part.kernels(c)
            kernels = kernels + kernel
            bias = None if bias is None or added_bias is None else bias + added_bias
        return kernels, bias

    def forward(self, x: Tensor, routing_weights: Tensor, geometry: Geometry, impl: str) -> Tensor:
        """See the base; there is one way, whatever `impl` is."""
        check_tensors(x, self.weight, routing_weights, self.bias)
        check_routing_weights(routing_weights, x, self.num_experts)  # smaller ones would be broadcast
        if self.active == 0:
            return geometry.shared(x, self.weight, self.bias)
        c = routing_weights - self.centre.to(routing_weights.dtype)
        added = [part(x, c, geometry, self._dim) for part in self._added]
        if self.input_gains is not None:
            x = self.input_gains(x, c, self._dim)
        alone = x
        if self.mixing is not None:
            x = self.mixing(x, c, self._dim)
        if self.common is not None:
            scaled = self.common(alone, c, self._dim)
            x = scaled if x is alone else x + (scaled - alone)
        y = geometry.shared(x, self.weight, self.bias if self.output_gains is None else None)
        if self.output_gains is not None:
            y = self.output_gains(y, c, self._dim)
            if self.bias is not None:  # it is not multiplied
                y = y + along(self.bias, y, self._dim)
        return sum(added, y)

    @torch.no_grad()
    def kernels(self) -> Tensor:
        """See the base; W0 is not in them."""
        eye = torch.eye(self.num_experts, dtype=torch.float32, device=self.weight.device)
        return self.mix(self.centre.float() + eye)[0] - self.weight.float()

    @torch.no_grad()
    def scale_outputs_(self, scale: Tensor) -> None:
        """See the base; W0, the bias and what is added are scaled."""
        super().scale_outputs_(scale)
        scale = scale.to(self.weight.device, torch.float64)
        for part in self._added:
            part.scale_outputs_(scale)

    def cost(self, inputs: int, outputs: int, mixtures: int) -> MixCost:
        """See the base; no mixed kernel exists."""
        madds = self.weight.numel() * (inputs if self.spec.transposed else outputs)
        if self.mixing is not None:
            madds += self.mixing.madds(inputs, mixtures)
        for gains in (self.input_gains, self.output_gains, self.common):
            madds += 0 if gains is None else gains.madds(mixtures)
        madds += sum(part.madds(inputs, outputs, mixtures) for part in self._added)
        return MixCost(madds, sum(each.nbytes for each in self.parameters()), 0)

    @classmethod
    def why_not(cls, spec: KernelSpec, **options: Any) -> str | None:
        """See the base."""
        try:
            resolve_parts(spec, **{"rank": "auto", "gains": False, "outputs": None, "kernels": None, **options})
        except UsageError as error:
            return str(error)
        return None

    def options(self) -> str:
        """See the base."""
        rank = self.mixing.rank if isinstance(self.mixing, LowRankMixing) else "full" if self.mixing else None
        told = {"outputs": self.outputs and self.outputs.rank, "kernels": self.principal and self.principal.rank}
        more = "".join(f", {name}={value}" for name, value in told.items() if value)
        return f"rank={rank!r}, gains={self.output_gains is not None}{more}"
