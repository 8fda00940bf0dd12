"""Stores that mix an example's kernel from whole kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from condconv.nn.experts.base import Experts, Geometry, KernelSpec, MixCost
from condconv.nn.experts.start import in_layout_of, init_experts_, spread_experts
from condconv.ops.quantized import along_outputs, quantize, widen

_Mixed = TypeVar("_Mixed", bound="MixedExperts")


class MixedExperts(Experts):
    """N kernels and their weighted sum, `W(x) = sum_n k_n W_n`, with coefficients `k` from the routing weights.

    Args:
        spec: The kernel.
        num_experts: E.
        num_kernels: N.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        weight: `[N, *shape]`; each kernel as the weight of the static layer.
        weight_scale: `[N, O]`, fp32, by which int8 kernels are multiplied; `None` for all others.
        bias: `[N, O]`, mixed by the coefficients too, or `None`.
    """

    linear = True
    weight: nn.Parameter
    weight_scale: Tensor | None

    def __init__(
        self,
        spec: KernelSpec,
        num_experts: int,
        num_kernels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(spec, num_experts)
        self.weight = nn.Parameter(torch.empty(num_kernels, *spec.shape, device=device, dtype=dtype))
        bias = torch.empty(num_kernels, spec.out_channels, device=device, dtype=dtype) if spec.bias else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.register_buffer("weight_scale", None)

    def coefficients(self, routing_weights: Tensor) -> Tensor:
        """Return the weight of each kernel, `[B, N]`, in the dtype of the routing weights `[B, E]`."""
        raise NotImplementedError

    def all_kernels(self) -> Tensor:
        """Return the N kernels, `[N, *shape]`; fp32 for quantized ones."""
        return self._widened(torch.float32) if self.quantized else self.weight

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
        coefficients = self.coefficients(routing_weights[None])[0]
        experts = spread_experts(kernel.detach(), coefficients, expert_spread)
        self.weight = nn.Parameter(experts, requires_grad=kernel.requires_grad)
        if bias is not None:
            biases = spread_experts(bias.detach(), coefficients, 0.0)
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

    def mix(self, routing_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        dtype, each = routing_weights.dtype, self.coefficients(routing_weights)
        kernels = torch.tensordot(each, self._widened(dtype), dims=1)
        return kernels, None if self.bias is None else each @ self.bias.to(dtype)

    def forward(self, x: Tensor, routing_weights: Tensor, geometry: Geometry, impl: str) -> Tensor:
        """See the base; the operation `condconv.ops.cond_conv2d` and its siblings."""
        coefficients = self.coefficients(routing_weights)
        return geometry.per_example(x, self.weight, coefficients, self.bias, impl=impl, weight_scale=self.weight_scale)

    @torch.no_grad()
    def scale_outputs_(self, scale: Tensor) -> None:
        """See the base; `[N, O]` scales each kernel on its own."""
        scale = scale.to(self.weight.device, torch.float64).expand(len(self.weight), -1)
        along = along_outputs(scale, self.weight, self.spec.groups, self.spec.transposed)
        scaled = self.weight.double() * along
        self.weight = nn.Parameter(scaled.to(self.weight.dtype), self.weight.requires_grad)
        if self.bias is not None:
            self.bias = nn.Parameter((self.bias.double() * scale).to(self.bias.dtype), self.bias.requires_grad)

    def cost(self, inputs: int, outputs: int, mixtures: int) -> MixCost:
        """See the base; the multiply-adds of mixing are N for each number of kernel and bias."""
        kernel = self.weight[0].numel()
        mixed = kernel + (0 if self.bias is None else self.spec.out_channels)
        held = sum(each.nbytes for each in (self.weight, self.bias, self.weight_scale) if each is not None)
        madds = kernel * (inputs if self.spec.transposed else outputs) + len(self.weight) * mixed * mixtures
        return MixCost(madds, held, mixed * self.dtype.itemsize)

    def why_not_quantize(self) -> str | None:
        """See the base."""
        weight = self._parameters.get("weight")
        if weight is None:
            return "its experts are computed from other tensors (a parametrization): remove that first"
        if self.quantized:
            return f"they are already, in {weight.dtype}: quantize the network it came from"
        if weight.dtype != torch.float32:
            return (
                f"they are {weight.dtype}, not torch.float32: call model.float() first, and change its dtype afterwards"
            )
        if weight.is_meta:
            return "they have no values, on the meta device: call model.to_empty(device=...) or load them first"
        if not weight.isfinite().all():
            return "they are not all finite: look at how it was trained"
        return None

    @torch.no_grad()
    def quantize(self, dtype: torch.dtype) -> MixedExperts:
        """See the base."""
        experts = self.weight.detach()
        quantized = self.with_own_parameters()
        if dtype == torch.int8:
            experts, quantized.weight_scale = quantize(experts, self.spec.groups, self.spec.transposed)
        quantized.weight = nn.Parameter(experts.to(dtype), requires_grad=False)
        quantized.quantized = True
        return quantized

    def _widened(self, dtype: torch.dtype) -> Tensor:
        """Return the kernels in a dtype; in fp64 exact, quantized ones too."""
        if self.quantized:
            return widen(self.weight, self.weight_scale, self.spec.groups, self.spec.transposed, dtype)
        return self.weight.to(dtype)

    def _apply(self: _Mixed, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Mixed:
        # `model.to(memory_format=torch.channels_last)` converts every 4-D and 5-D parameter and fails on the latter.
        # Seen with the experts stacked along the output channels it lays out each expert, as a static layer's kernel.
        # Nothing else in the experts has four dimensions.
        def apply_to_experts(tensor: Tensor) -> Tensor:
            stacked = tensor.dim() > 3
            applied = fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2]) if stacked else fn(tensor)
            # Quantized experts and their scale stay as they are in a model that changes its dtype.
            quantized = self.quantized and (tensor is self.weight or tensor is self.weight_scale)
            if quantized and applied.dtype != tensor.dtype:
                return torch.empty_like(applied, dtype=tensor.dtype).copy_(tensor)
            return applied

        if recurse:
            for child in self.children():  # a parametrized weight's numbers are in a child
                child._apply(apply_to_experts)
        super()._apply(apply_to_experts, recurse=False)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        # A copy between int8 and floats would go through, and be wrong.
        given = state_dict.get(f"{prefix}weight")
        if given is not None and (given.dtype == torch.int8) != (self.weight.dtype == torch.int8):
            into_quantized = "load into the ordinary network, then call condconv.quantize_experts_(model)"
            remedy = into_quantized if self.quantized else "call condconv.quantize_experts_(model) before loading"
            lists[-1].append(f"`{prefix}weight` must be {self.weight.dtype}, as here, got {given.dtype}: {remedy}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
