"""E whole kernels, as in the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.nn.experts.base import KernelSpec
from condconv.nn.experts.mixed import MixedExperts


class DenseExperts(MixedExperts):
    """E kernels and their weighted sum: `W(x) = sum_e r_e(x) W_e`.

    Source:
        CondConv, section 3 (arXiv:1904.04971).
    """

    why_not_fewer = "each is a share of the kernel, so that fewer of them are a smaller kernel, and none are nothing"

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
