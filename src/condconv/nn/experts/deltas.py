"""One kernel that all examples share, and E differences from it that are routed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.nn.experts.base import Geometry, KernelSpec
from condconv.nn.experts.dense import DenseExperts
from condconv.nn.experts.mixed import MixedExperts
from condconv.nn.experts.start import ROUTED_SPREAD, in_layout_of, init_experts_
from condconv.ops.scalars import number
from condconv.ops.validation import check_routing_weights, check_tensors


def one_and_centred(routing_weights: Tensor, centre: Tensor, scale: Tensor | None) -> Tensor:
    """Return the coefficients of a shared kernel and E differences, `[B, 1 + E]`: a one, and `(r - centre) * scale`."""
    c = routing_weights - centre.to(routing_weights.dtype)
    return F.pad(c if scale is None else c * scale.to(c.dtype), (1, 0), value=1.0)


class DeltaExperts(MixedExperts):
    """One kernel and E routed differences: `W(x) = W0 + s sum_e c_e(x) D_e`, with centred weights `c = r - centre`.

    E experts of the paper learn mostly a common factor: their kernels start alike, so all routing weights move
    together. Here the common part is a kernel of its own, which learns as a static one does whatever E is, and routing
    moves the kernel only along what the experts differ by. It holds E + 1 kernels.

    The scale s is for Adam and its kin, which move each D_e by a full step, however little of its gradient is signal.
    The D_e start larger by 1 / s: the network starts as with any other s, and its kernels move by smaller steps, which
    a trained network needs when it is fine-tuned. SGD's steps get smaller by s squared, so take 1 there.

    Args:
        spec: The kernel.
        num_experts: E.
        device: Of the parameters.
        dtype: Of the parameters.
        scale: s, from 0.001 to 1.

    Attributes:
        weight: `[1 + E, *shape]`: W0, then the D_e.
        bias: `[1 + E, O]`: that of W0, then the differences; or `None`.
        centre: `[E]`, the routing weights at which the kernel is W0: those that every input has at the start.
        scale: s, a scalar; `None` for 1.

    Raises:
        UsageError: `scale` is out of range.

    Source:
        A form of CondConv, section 3, of E + 1 experts whose first has weight 1; the centring is ours. The scale is
        that of low-rank adapters (arXiv:2106.09685).
    """

    centred = True
    why_not_fewer = None
    centre: Tensor
    scale: Tensor | None

    def __init__(
        self,
        spec: KernelSpec,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scale: float = 1.0,
    ) -> None:
        super().__init__(spec, num_experts, 1 + num_experts, device, dtype)
        remedy = "0.1 suits fine-tuning with AdamW, 1 training from scratch"
        # By a smaller one the D_e, 1 / s times as large, would overflow in fp16.
        scale = number("scale", scale, "from 0.001 to 1", lambda each: 1e-3 <= each <= 1, remedy)
        self.register_buffer("centre", torch.full((num_experts,), 0.5, device=device, dtype=dtype))
        # It travels with the weights: with another they would be other kernels.
        self.register_buffer("scale", None if scale == 1 else torch.tensor(scale, device=device, dtype=dtype))

    def coefficients(self, routing_weights: Tensor) -> Tensor:
        """Return `[B, 1 + E]`: a one, and the centred weights; those of experts that are not active are 0."""
        if self.active is None:
            return one_and_centred(routing_weights, self.centre, self.scale)
        return F.pad(self._first(routing_weights, self.active), (0, self.num_experts - self.active))

    def _first(self, routing_weights: Tensor, number: int) -> Tensor:
        return one_and_centred(routing_weights[:, :number], self.centre[:number], self.scale)

    def forward(self, x: Tensor, routing_weights: Tensor, geometry: Geometry, impl: str) -> Tensor:
        """See the base."""
        check_tensors(x, self.weight, routing_weights, self.bias)
        check_routing_weights(routing_weights, x, self.num_experts)  # smaller ones would be broadcast
        number = self.active
        if number is None:
            return super().forward(x, routing_weights, geometry, impl)
        bias = None if self.bias is None else self.bias[: 1 + number]
        if number == 0:
            return geometry.shared(x, self.all_kernels()[0], None if bias is None else bias[0])
        scale = None if self.weight_scale is None else self.weight_scale[: 1 + number]
        coefficients = self._first(routing_weights, number)
        return geometry.per_example(x, self.weight[: 1 + number], coefficients, bias, impl=impl, weight_scale=scale)

    @torch.no_grad()
    def keep_(self, number: int) -> None:
        """See the base; W0 always stays."""
        for name in ("weight", "bias"):
            if (old := getattr(self, name)) is not None:
                setattr(self, name, nn.Parameter(old[: 1 + number].clone(), old.requires_grad))
        if self.weight_scale is not None:
            self.weight_scale = self.weight_scale[: 1 + number].clone()
        self.centre = self.centre[:number].clone()
        self.num_experts = len(self.centre)
        self.activate_(None)

    def kernels(self) -> Tensor:
        """See the base; W0 is not in them."""
        deltas = self.all_kernels()[1:]
        return deltas if self.scale is None else deltas * self.scale

    def centre_on_(self, routing_weights: Tensor) -> None:
        """See the base."""
        self.centre = routing_weights.detach().to(self.centre)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See the base; for W0, and the differences have a share of its deviation."""
        init_experts_(self.weight[:1], None if self.bias is None else self.bias[:1])
        self._draw_deltas_(0.5)

    @torch.no_grad()
    def start_from_(
        self, kernel: Tensor, bias: Tensor | None, routing_weights: Tensor, expert_spread: float = 0.5
    ) -> None:
        """See the base; the output is the same whatever the differences are, since they have weight 0 at the centre."""
        stacked = torch.empty(self.weight.shape, device=kernel.device, dtype=kernel.dtype)
        stacked[0] = kernel.detach()
        self.weight = nn.Parameter(in_layout_of(kernel, stacked), kernel.requires_grad)
        if self.bias is not None and bias is not None:
            biases = bias.detach()[None].repeat(len(self.weight), 1)
            self.bias = nn.Parameter(biases, bias.requires_grad)
        self.centre_on_(routing_weights)
        self._draw_deltas_(expert_spread)

    @torch.no_grad()
    def draw_(self, kernel: Tensor, bias: Tensor | None, deviation: Tensor) -> None:
        """See the base."""
        drawn = in_layout_of(kernel, torch.empty_like(kernel).normal_().mul_(deviation)[None])[0]
        self.start_from_(nn.Parameter(drawn, kernel.requires_grad), bias, self.centre)

    def _draw_deltas_(self, expert_spread: float) -> None:
        shared, deltas = self.weight.detach().split([1, self.num_experts])
        # An entry alone has no deviation; no number leaves the device, as the meta device has none.
        deviation = shared.std(correction=0) if shared.numel() > 1 else shared.abs().mean()
        deltas.normal_().mul_(ROUTED_SPREAD * expert_spread * deviation)
        if self.scale is not None:
            deltas.div_(self.scale)
        if self.bias is not None:
            self.bias.detach()[1:].zero_()

    def as_dense(self) -> DenseExperts:
        """Return the same E + 1 kernels as experts that are weighted by the coefficients; tensors are shared."""
        dense = DenseExperts(self.spec, len(self.weight), device="meta")
        dense.weight, dense.bias, dense.weight_scale = self.weight, self.bias, self.weight_scale
        dense.quantized = self.quantized
        return dense

    def options(self) -> str:
        """See the base."""
        if self.scale is None:
            return ""
        return f"scale={'?' if self.scale.is_meta else format(self.scale.item(), '.6g')}"
