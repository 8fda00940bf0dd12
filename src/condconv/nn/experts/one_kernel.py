"""Stores whose examples all share one kernel, around which small parts are routed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condconv.nn.experts.base import Experts, KernelSpec
from condconv.nn.experts.start import in_layout_of, init_experts_
from condconv.ops.quantized import along_outputs


class OneKernelExperts(Experts):
    """One kernel W0, and parts that have no effect at the start: any static kernel is a start with the same output.

    Args:
        spec: The kernel.
        num_experts: E.
        **where: Device and dtype of the parameters.

    Attributes:
        weight: W0, `[*shape]`.
        bias: `[O]`, or `None`; not routed by itself.
    """

    weight: nn.Parameter

    def __init__(self, spec: KernelSpec, num_experts: int, **where: Any) -> None:
        super().__init__(spec, num_experts)
        self.weight = nn.Parameter(torch.empty(spec.shape, **where))
        self.register_parameter("bias", nn.Parameter(torch.empty(spec.out_channels, **where)) if spec.bias else None)

    def _draw_parts_(self, expert_spread: float) -> None:
        """Draw the parts at random, in place; `expert_spread` is that of `start_from_`. Subclasses define it."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See the base."""
        init_experts_(self.weight[None], None if self.bias is None else self.bias[None])
        self._draw_parts_(0.5)

    @torch.no_grad()
    def start_from_(
        self, kernel: Tensor, bias: Tensor | None, routing_weights: Tensor, expert_spread: float = 0.5
    ) -> None:
        """See the base; the output is the same whatever the parts are, since they have no effect at the start."""
        self.centre_on_(routing_weights)
        self._start_from_(kernel, bias, expert_spread)

    @torch.no_grad()
    def draw_(self, kernel: Tensor, bias: Tensor | None, deviation: Tensor) -> None:
        """See the base."""
        drawn = in_layout_of(kernel, self.weight.normal_().mul_(deviation)[None])[0]
        self._start_from_(nn.Parameter(drawn, kernel.requires_grad), bias, 0.5)

    def _start_from_(self, kernel: Tensor, bias: Tensor | None, expert_spread: float) -> None:
        self.weight = nn.Parameter(kernel.detach().clone(), kernel.requires_grad)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self._draw_parts_(expert_spread)
        for name, parameter in self.named_parameters():
            if name not in ("weight", "bias"):
                parameter.requires_grad_(kernel.requires_grad)

    @torch.no_grad()
    def scale_outputs_(self, scale: Tensor) -> None:
        """See the base; W0 and the bias. Subclasses scale what they add, too."""
        scale = scale.to(self.weight.device, torch.float64)
        kernel = self.weight.double()
        kernel = kernel * along_outputs(scale[None], kernel[None], self.spec.groups, self.spec.transposed)[0]
        self.weight = nn.Parameter(kernel.to(self.weight.dtype), self.weight.requires_grad)
        if self.bias is not None:
            self.bias = nn.Parameter((self.bias.double() * scale).to(self.bias.dtype), self.bias.requires_grad)

    def why_not_quantize(self) -> str | None:
        """See the base."""
        return "they are one kernel and small parts: there is little to save"
