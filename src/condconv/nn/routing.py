"""Routing functions that read the input: sigmoid, with a hidden layer or hierarchical, and top-k."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.nn.float32_linear import Float32Linear
from condconv.nn.heads import check_parts
from condconv.nn.routing_function import RoutingFunction
from condconv.ops.recording import plain_shape
from condconv.ops.scalars import positive, whole
from condconv.ops.validation import check_tensor

_MOST_PREVIOUS = 4096  # experts, as in a name of the zoo


class SigmoidRouting(RoutingFunction):
    """`sigmoid(Linear(pool(x)))`, the paper's choice: each expert is used independently of the others.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        **options: Of `RoutingFunction`.

    Source:
        CondConv, section 3 and Table 3: within 0.5 points of the best.

    Example:
        >>> SigmoidRouting(16, 4)(torch.randn(2, 16, 7, 7)).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_channels: int, num_experts: int, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        self.fc = self.head()

    def weigh(self, code: Tensor) -> Tensor:
        """Return weights `[B, E]`, each between 0 and 1."""
        return torch.sigmoid(self.fc(code))

    @property
    def why_not_fewer(self) -> str | None:
        """See the base; each expert has a sigmoid of its own."""
        return None if len(self.parts) == 1 and self.mixes else "it also gives other parts than weights of experts"

    @torch.no_grad()
    def keep_(self, num_experts: int) -> None:
        """See the base."""
        for name in ("weight", "bias"):
            old = getattr(self.fc, name)
            setattr(self.fc, name, nn.Parameter(old[:num_experts].clone(), old.requires_grad))
        self.fc.out_features = self.num_experts = self.num_weights = num_experts
        self.parts = check_parts(None, num_experts)


class HiddenRouting(SigmoidRouting):
    """`sigmoid(Linear(relu(Linear(pool(x)))))`: sigmoid routing with a hidden layer.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        hidden_ratio: Hidden units for each input channel; the paper tries 1/8, 1 and 8.
        **options: Of `RoutingFunction`.

    Raises:
        UsageError: `hidden_ratio` is not positive.

    Source:
        CondConv, Table 3: with C units as good as one linear layer (62.2 and 62.0 %), with C/8 and 8C worse.
    """

    def __init__(self, in_channels: int, num_experts: int, *, hidden_ratio: float = 1.0, **options: Any) -> None:
        super().__init__(in_channels, num_experts, hidden_ratio=self._checked(hidden_ratio), **options)


class HierarchicalRouting(RoutingFunction):
    """Sigmoid routing that also takes the weights of the previous routing function as input.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        previous_experts: Number of weights of the previous routing function; 0 for the first of a chain.
        **options: Of `RoutingFunction`.

    Source:
        CondConv, Table 3 ("hierarchical"). Deviation: `convert_` and the networks of this package pass weights from
        block to block; layers outside blocks, such as the classifier, route only by their own input.
    """

    _has_hidden = False

    def __init__(self, in_channels: int, num_experts: int, *, previous_experts: int = 0, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        self.previous_experts = previous_experts = whole("previous_experts", previous_experts)
        if previous_experts > _MOST_PREVIOUS:
            raise UsageError(
                f"`previous_experts` must be at most {_MOST_PREVIOUS}, got {previous_experts}: it is the number of "
                "experts of the block before"
            )
        if self.heads is not None or not self.mixes:
            raise UsageError(
                "`routing` must not be hierarchical for experts that want more than one weight each, got it: take "
                "'hidden' or 'softmax'"
            )
        self._inputs += previous_experts
        self.fc = Float32Linear(self._inputs, num_experts, **self._where)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """Return the routing weights `[B, E]` of x `[B, C, *S]`, given the previous ones `[B, previous_experts]`.

        Raises:
            UsageError: `previous` does not have the declared size.
        """
        if previous is not None:
            check_tensor("previous", previous)
        shape = () if previous is None else plain_shape(previous)
        if (len(shape), *shape[1:]) != ((2, self.previous_experts) if self.previous_experts else (0,)):
            raise UsageError(
                f"`previous` must have shape [B, {self.previous_experts}], got "
                f"{None if previous is None else tuple(shape)}: set previous_experts to their number"
            )
        pooled = self.pool(x)
        if previous is not None:
            pooled = torch.cat([pooled, previous.to(pooled.dtype)], dim=1)
        return self.drop(self.weigh(pooled))

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return weights `[B, E]`, each between 0 and 1, of `[B, C + previous_experts]`."""
        return torch.sigmoid(self.fc(pooled))


class TopKRouting(RoutingFunction):
    """Softmax over the k largest logits, zero for the others.

    It bounds how many experts an example uses. It saves no arithmetic, since all experts are mixed in one product.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        k: Number of experts that an example uses.
        **options: Of `RoutingFunction`.

    Raises:
        UsageError: k is not between 1 and `num_experts`.

    Source:
        Shazeer et al., "Outrageously Large Neural Networks", 2017, without noise. Not in the paper.
    """

    def __init__(self, in_channels: int, num_experts: int, *, k: int = 2, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        self.k = positive("k", k)
        if self.k > num_experts:
            raise UsageError(
                f"`k` must be at most num_experts = {num_experts}, got {k}: give fewer, or the layer more experts"
            )
        self.fc = self.head()

    def weigh(self, code: Tensor) -> Tensor:
        """Return weights `[B, E]` that sum to one, at most k of them nonzero."""
        top = self.fc(code).topk(self.k, dim=1)
        return (
            torch.zeros_like(top.values[:, :1])
            .expand(-1, self.num_experts)
            .scatter(1, top.indices, top.values.softmax(1))
        )

    def start_constant_(self) -> Tensor:
        """As in the base class, with a small bias that falls with the index: equal logits have no defined order."""
        start = super().start_constant_()
        if not self.mixes:
            return start
        with torch.no_grad():
            self.fc.bias.copy_(torch.linspace(0.1, 0.0, self.num_experts))
        return self._weights_of_zeros()

    def extra_repr(self) -> str:
        """Describe the sizes in `repr`."""
        return f"{super().extra_repr()}, k={self.k}"
