"""The running sums that the recorder keeps for one routing function; their size does not grow with the examples."""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.analysis import statistics


class Accumulator:
    """Sums over the routing weights of one routing function.

    Args:
        num_classes: K; 0 for examples without classes.
        num_experts: Number of experts, E.
        num_weights: Length of the routing vector, N.
        top_examples: How many of the examples with the highest weights are remembered for each expert.

    Attributes:
        sums: The sums, by the names of the fields of `RoutingRecord`.
        weight_products: Sum of the outer products of the weights with themselves, `[E, E]`.
    """

    def __init__(self, num_classes: int, num_experts: int, num_weights: int, top_examples: int) -> None:
        per_class = (num_classes, num_experts)
        self.sums: dict[str, Tensor] = {
            "examples": torch.zeros((), dtype=torch.long),
            "vector_sums": torch.zeros(num_weights, dtype=torch.float64),
            "weight_sums": torch.zeros(num_experts, dtype=torch.float64),
            "weight_squares": torch.zeros(num_experts, dtype=torch.float64),
            "share_sums": torch.zeros(num_experts, dtype=torch.float64),
            "entropy_sum": torch.zeros((), dtype=torch.float64),
            "histogram": torch.zeros(num_experts, statistics.BINS, dtype=torch.long),
            "outside": torch.zeros((), dtype=torch.long),
            "class_examples": torch.zeros(num_classes, dtype=torch.long),
            "class_sums": torch.zeros(per_class, dtype=torch.float64),
            "class_squares": torch.zeros(per_class, dtype=torch.float64),
            "class_share_sums": torch.zeros(per_class, dtype=torch.float64),
        }
        self.weight_products = torch.zeros(num_experts, num_experts, dtype=torch.float64)
        self.highest_shares = torch.zeros(num_experts, dtype=torch.float64)
        self.top_weights = torch.full((num_experts, top_examples), -torch.inf, dtype=torch.float64)
        self.top_ids = torch.full((num_experts, top_examples), -1)

    def add(self, weights: Tensor, vectors: Tensor, targets: Tensor | None, ids: Tensor) -> None:
        """Add examples, of fp64 on the CPU.

        Args:
            weights: Those of the experts, `[B, E]`.
            vectors: The routing vectors that hold them, `[B, N]`.
            targets: Classes `[B]`, or None.
            ids: Numbers of the examples, `[B]`.
        """
        if len(weights) == 0:
            return
        shares = statistics.shares(weights)
        self.weight_products += weights.mT @ weights
        self.highest_shares = torch.maximum(self.highest_shares, shares.amax(0))
        self._remember_highest(weights, ids)
        self._add(
            examples=torch.tensor(len(weights)),
            vector_sums=vectors.sum(0),
            weight_sums=weights.sum(0),
            weight_squares=weights.square().sum(0),
            share_sums=shares.sum(0),
            entropy_sum=statistics.entropy(shares).sum(),
            histogram=statistics.histogram(weights),
            outside=((weights < 0) | (weights > 1)).sum(),
        )
        if targets is not None:
            self.sums["class_examples"] += torch.bincount(targets, minlength=len(self.sums["class_examples"]))
            for name, values in (("sums", weights), ("squares", weights.square()), ("share_sums", shares)):
                self.sums[f"class_{name}"].index_add_(0, targets, values)

    def _add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.sums[name] += value

    def _remember_highest(self, weights: Tensor, ids: Tensor) -> None:
        all_weights = torch.cat([self.top_weights, weights.mT], dim=1)
        all_ids = torch.cat([self.top_ids, ids.expand(weights.shape[1], -1)], dim=1)
        # Stable, so that the same examples win wherever many weights are equal.
        order = all_weights.argsort(dim=1, descending=True, stable=True)[:, : self.top_weights.shape[1]]
        self.top_weights, self.top_ids = all_weights.gather(1, order), all_ids.gather(1, order)
