"""What a store of experts wants to be routed by, and the heads of a routing function that give it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.float32_linear import Float32Linear

OF_EXPERTS = "experts"
"""The name of the part that has one weight per expert: the routing function's own output."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gain": lambda score: 2 * torch.sigmoid(score),
    "linear": lambda score: score,
}
"""From scores to the numbers of a part: gains between 0 and 2, 1 at the start; or any numbers, 0 at the start."""


class Part(NamedTuple):
    """A part of the routing vector `[B, N]` that a store wants.

    Attributes:
        name: Of the part; `"experts"` for one weight per expert.
        size: How many numbers it has.
        activation: A key of `ACTIVATIONS`; not used for `"experts"`, which each routing function computes in its way.
    """

    name: str
    size: int
    activation: str = "linear"


def check_parts(parts: Any, num_experts: int) -> tuple[Part, ...]:
    """Return the parts of a routing vector; of `None`, one weight per expert.

    Raises:
        UsageError: They are not parts, or the weights are not those of the experts.
    """
    if parts is None:
        return (Part(OF_EXPERTS, num_experts),)
    given = tuple(parts) if isinstance(parts, Sequence) else ()
    if not given or not all(isinstance(part, Part) for part in given):
        raise UsageError(
            f"`parts` must be a sequence of condconv.nn.Part or None, got {shown(parts)}: give `experts.parts` of the "
            "layer"
        )
    if wrong := [part for part in given if part.name == OF_EXPERTS and (part.size != num_experts or part != given[0])]:
        raise UsageError(
            f"`parts` must begin with the weights of num_experts = {num_experts}, if they have any, got "
            f"{shown(wrong[0])}: give `experts.parts` of the layer"
        )
    return given


class Heads(nn.Module):
    """The parts of a routing vector other than `"experts"`: one linear map, and an activation for each part.

    Args:
        in_features: Channels of the pooled input, or hidden units.
        parts: The parts, without `"experts"`.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        parts: Sequence[Part],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.linear: Any = Float32Linear(in_features, sum(part.size for part in parts), device, dtype)

    def forward(self, code: Tensor) -> Tensor:
        """Map `[B, H, ...]` to the parts one after the other, `[B, N, ...]`."""
        scores = self.linear(code)
        given, start = [], 0
        for part in self.parts:  # slices: of a split, ExecuTorch's lowering would fix the batch to the example's
            given.append(ACTIVATIONS[part.activation](scores[:, start : start + part.size]))
            start += part.size
        return torch.cat(given, 1)

    def extra_repr(self) -> str:
        """Describe the parts in `repr`."""
        return ", ".join(f"{part.name}={part.size}" for part in self.parts)


def at_start(parts: Sequence[Part]) -> Tensor:
    """Return the routing vector `[N]` of heads whose scores are 0 and of equal weights, `1 / E`; fp64 on the CPU."""
    return torch.cat(
        [
            torch.full((part.size,), 1 / part.size, dtype=torch.float64, device="cpu")
            if part.name == OF_EXPERTS
            else ACTIVATIONS[part.activation](torch.zeros(part.size, dtype=torch.float64, device="cpu"))
            for part in parts
        ]
    )
