"""Routing that does not read the input: the same weights for all inputs, or those of the caller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.heads import at_start
from condconv.nn.routing_function import RoutingFunction
from condconv.ops.scalars import flag


class ConstantRouting(RoutingFunction):
    """The same weights for every input: a control without input-dependence.

    Args:
        in_channels: C of the input; not used. All routing functions have this argument.
        num_experts: Number of experts, E.
        weights: The E weights, or one weight for all experts; `None` for `1 / E`.
        learn: Whether the weights are trained, from these values on: a control that has all that routing has but the
            input. Otherwise they are a buffer.
        **options: Of `RoutingFunction`.

    Raises:
        UsageError: `weights` is not a number, nor E of them.
    """

    _reads_input = _has_hidden = False
    weights: Tensor

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        weights: Tensor | list[float] | float | None = None,
        learn: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, num_experts, **options)
        values = _as_numbers(1 / num_experts if weights is None else weights)
        if values is not None and values.dim() == 0:
            values = values.repeat(num_experts)
        if values is None or values.shape != (num_experts,):
            raise UsageError(
                f"`weights` must be a number or E = {num_experts} of them, got {shown(weights)}: give one finite "
                "number per expert, or one for all"
            )
        self._start = at_start(self.parts).float()
        if self.mixes:
            self._start[:num_experts] = values.detach()
        empty = torch.empty(self.num_weights, dtype=torch.float32, device=options.get("device"))
        if flag("learn", learn):
            self.weights = nn.Parameter(empty)
        else:
            self.register_buffer("weights", empty)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weights again, in place: those of a layer made on the meta device have no values."""
        self.weights.copy_(self._start)

    def weigh(self, code: Tensor) -> Tensor:
        """Return the constant weights of the experts, expanded to `[B, E]`."""
        return self.weights[: self.num_experts].to(code.dtype).expand(code.shape[0], -1)

    def join(self, weights: Tensor | None, code: Tensor) -> Tensor:
        """Return the weights of the experts, and after them the other parts as they are at the start."""
        if weights is not None and self.num_weights == self.num_experts:
            return weights
        others = self.weights[self.num_experts if self.mixes else 0 :].to(code.dtype).expand(code.shape[0], -1)
        return others if weights is None else torch.cat([weights, others], 1)

    def extra_repr(self) -> str:
        """Describe the sizes in `repr`."""
        return f"{super().extra_repr()}, learn={isinstance(self.weights, nn.Parameter)}"


class ExternalRouting(RoutingFunction):
    """No routing function: the caller passes `routing_weights` to the layer.

    Args:
        in_channels: C of the input; not used.
        num_experts: Number of experts, E.
        **options: Of `RoutingFunction`.
    """

    _reads_input = _has_hidden = False

    def forward(self, x: Tensor) -> Tensor:
        """Raise an error: the weights are missing.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"`routing_weights` must be given, [B, {self.num_weights}], got None: this layer is routed from outside; "
            "call layer(x, routing_weights), or create it with routing='sigmoid'"
        )

    def start_constant_(self) -> Tensor:
        """Return weights of `1 / E` each, which the caller's are assumed to be at the start."""
        return at_start(self.parts)


def _as_numbers(weights: Any) -> Tensor | None:
    """Return finite numbers as a tensor on the CPU, or `None`."""
    try:
        values = torch.as_tensor(weights, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    numbers = not values.is_complex() and values.dtype != torch.bool and bool(values.isfinite().all())
    return values if numbers else None
