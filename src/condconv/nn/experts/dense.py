"""E whole kernels, as in the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from condconv.nn.experts.base import KernelSpec
from condconv.nn.experts.mixed import MixedExperts
from condconv.nn.experts.start import in_layout_of, init_experts_, spread_experts


class DenseExperts(MixedExperts):
    """E kernels and their weighted sum: `W(x) = sum_e r_e(x) W_e`.

    Source:
        CondConv, section 3 (arXiv:1904.04971).
    """

    def __init__(
        self,
        spec: KernelSpec,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(spec, num_experts, num_experts, device, dtype)

    def coefficients(self, routing_weights: Tensor) -> Tensor:
        """Return the routing weights as they are."""
        return routing_weights

    def kernels(self) -> Tensor:
        """See the base."""
        return self.all_kernels()

    def reset_parameters(self) -> None:
        """See the base; the fan is that of one kernel."""
        init_experts_(self.weight, self.bias)

    @torch.no_grad()
    def start_from_(
        self, kernel: Tensor, bias: Tensor | None, routing_weights: Tensor, expert_spread: float = 0.5
    ) -> None:
        """See the base; copies of the kernel, and differences that cancel: `spread_experts`."""
        experts = spread_experts(kernel.detach(), routing_weights, expert_spread)
        self.weight = nn.Parameter(experts, requires_grad=kernel.requires_grad)
        if bias is not None:
            biases = spread_experts(bias.detach(), routing_weights, 0.0)
            self.bias = nn.Parameter(biases, requires_grad=bias.requires_grad)

    @torch.no_grad()
    def draw_(self, kernel: Tensor, bias: Tensor | None, deviation: Tensor) -> None:
        """See the base."""
        # No number leaves the device: the meta device has none.
        experts = in_layout_of(kernel, self.weight.normal_().mul_(deviation))
        self.weight = nn.Parameter(experts, requires_grad=kernel.requires_grad)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
            self.bias.requires_grad_(bias.requires_grad)
