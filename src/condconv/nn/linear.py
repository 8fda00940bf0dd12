"""The linear layer with example-dependent weights, for classifiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.nn.conditional import ConditionalLayer
from condconv.nn.experts import KernelSpec
from condconv.nn.experts.build import ExpertsOption
from condconv.nn.experts.parts import along
from condconv.nn.factory import Routing
from condconv.nn.geometry import LinearGeometry
from condconv.ops.recording import plain_shape
from condconv.ops.scalars import flag, positive
from condconv.ops.validation import check_tensor, shape_remedy

_GEOMETRY = LinearGeometry()


class CondLinear(ConditionalLayer):
    """`torch.nn.Linear` with example-dependent weights: `[B, ..., C] -> [B, ..., O]`.

    All rows of an example share its routing weights, taken from the mean over the rows.

    Args:
        in_features: C.
        out_features: O.
        bias: Whether each expert has a bias `[O]`.
        device: Where the parameters live.
        dtype: Of the parameters.
        num_experts: E; `None` for 8, or for what the method has.
        routing: As in `CondConv2d`.
        experts: As in `CondConv2d`.
        method: As in `CondConv2d`.
        impl: As in `condconv.ops.cond_conv2d`.

    Raises:
        UsageError: An argument is out of range; the message names it.
    """

    static_type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_experts: int | None = None,
        routing: Routing | None = None,
        experts: ExpertsOption | None = None,
        method: str | None = None,
        impl: str = "auto",
    ) -> None:
        in_features, out_features = positive("in_features", in_features), positive("out_features", out_features)
        spec = KernelSpec((out_features, in_features), out_features, bias=flag("bias", bias))
        super().__init__(spec, in_features, device, dtype, num_experts, routing, experts, method, impl)
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor, routing_weights: Tensor | None = None) -> Tensor:
        """Map each example with its own mixture of the experts.

        Args:
            x: `[B, ..., C]`.
            routing_weights: `[B, E]` to use instead of `routing_fn(x)`; `None` to route by x.

        Returns:
            `[B, ..., O]`.

        Raises:
            UsageError: A shape does not fit; the message names the argument.
        """
        check_tensor("x", x)
        if x.dim() < 2 or plain_shape(x)[-1] != self.in_features:
            raise UsageError(
                f"`x` must have shape [B, ..., {self.in_features}], got {tuple(plain_shape(x))}: {shape_remedy(x, 2)}"
            )
        if routing_weights is None:
            routing_weights = self.route(x if x.dim() == 2 else x.flatten(1, -2).transpose(-2, -1))
        y: Tensor = self.experts(x, routing_weights, _GEOMETRY, self.impl)
        return y if self.folded_bias is None else y + along(self.folded_bias, y, -1)

    def geometry(self) -> LinearGeometry:
        """Return how kernels are applied."""
        return _GEOMETRY

    @staticmethod
    def arguments_of(static: Any) -> dict[str, Any]:
        """Return the constructor arguments of a static linear layer."""
        return {"in_features": static.in_features, "out_features": static.out_features}

    def spread_for(self, kernel: Tensor) -> Tensor:
        """Return the standard deviation of drawn experts: the kernel's, but at most torch's own, 1 / sqrt(3 C).

        Deviation: the paper keeps the layer's own start. No norm follows a classifier, and the sum over E experts is
        sqrt(E) / 2 times as wide as one of them: where the static layer starts wide, the first loss is far above that
        of equal guesses, and the network may not recover (`docs/results.md`).
        """
        return super().spread_for(kernel).clamp(max=(3 * self.in_features) ** -0.5)

    @classmethod
    def from_linear(cls, linear: nn.Module, num_experts: int = 8, **options: Any) -> CondLinear:
        """Return a conditional linear layer that computes what `linear` does; `from_static` under its usual name."""
        return cls.from_static(linear, num_experts, **options)

    def to_static(self, routing_weights: Tensor) -> nn.Linear:
        """Return the ordinary linear layer that constant routing weights `[E]` make of this one."""
        weight, bias = self.fold(routing_weights)
        linear = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer as its twin does, with the number of experts."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.experts.bias is not None}, num_experts={self.num_experts}"
        )
