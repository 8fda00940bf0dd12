"""Frozen records of sums and counts, with the statistics that follow from them as properties."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from condconv.analysis import statistics
from condconv.analysis.experts import duplicate_experts


@dataclass(frozen=True, eq=False)
class RoutingRecord:
    """The weights that one routing function returned for all examples, as sums, and the layers that it routes.

    Sums are fp64, counts int64, all on the CPU. K is the number of classes, 0 without classes; E that of experts. One
    expert whose weight is always 1 stands for the single kernel of layers that only other parts of the vector route.

    Attributes:
        name: Name of the routing function in the network.
        layers: Names of the layers that it routes.
        kind: Class of the routing function, such as `SigmoidRouting`.
        examples: Number of weight vectors seen, `[]`.
        vector_sums: Sum of the routing vectors, `[N]`: of the weights, and of other parts where the experts want some.
        weight_sums: Sum of the weights, `[E]`.
        weight_squares: Sum of their squares, `[E]`.
        share_sums: Sum of the shares of the mixture (`condconv.analysis.statistics.shares`), `[E]`.
        entropy_sum: Sum of the entropies of each example's shares, in bits, `[]`.
        histogram: Number of weights in each of 40 bins from 0 to 1, `[E, 40]`.
        outside: Number of weights below 0 or above 1, which the histogram has in its outermost bins, `[]`.
        class_examples: Weight vectors of each class, `[K]`.
        class_sums: Sum of the weights by class, `[K, E]`.
        class_squares: Sum of their squares by class, `[K, E]`.
        class_share_sums: Sum of the shares by class, `[K, E]`.
        highest_shares: The highest share that any example gives each expert, `[E]`.
        top_weights: The highest weights of each expert, in descending order, `[E, N]`.
        top_ids: Numbers of their examples, `[E, N]`.
        similarity: Cosine similarity of the experts' kernels, the lowest over the layers, `[E, E]`.
        kernel_variation: How much the layers' kernels vary over examples, relative to their size, the mean over the
            layers (`condconv.analysis.statistics.kernel_variation`): 0 if all examples have the same kernels, at most
            1. None if it is not known: for experts whose kernels are not linear in the weights.
    """

    name: str
    layers: tuple[str, ...]
    kind: str
    examples: Tensor
    vector_sums: Tensor
    weight_sums: Tensor
    weight_squares: Tensor
    share_sums: Tensor
    entropy_sum: Tensor
    histogram: Tensor
    outside: Tensor
    class_examples: Tensor
    class_sums: Tensor
    class_squares: Tensor
    class_share_sums: Tensor
    highest_shares: Tensor
    top_weights: Tensor
    top_ids: Tensor
    similarity: Tensor
    kernel_variation: float | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.weight_sums)

    @property
    def mean(self) -> Tensor:
        """Mean weight of each expert, `[E]`."""
        return self.weight_sums / self.examples

    @property
    def variation(self) -> float:
        """How much the weights vary over examples, relative to their size; 0 if all examples have the same, below 1."""
        return statistics.variation(self.examples, self.weight_sums, self.weight_squares)

    @property
    def mean_vector(self) -> Tensor:
        """Mean of the routing vectors, `[N]`, with which a layer is static; the mean weights if they are all of it."""
        return self.vector_sums / self.examples

    @property
    def class_mean(self) -> Tensor:
        """Mean weight by class, `[K, E]`; NaN in the row of a class that was not seen."""
        return self.class_sums / self.class_examples[:, None]

    @property
    def class_std(self) -> Tensor:
        """Standard deviation over the examples of a class (population), `[K, E]`; NaN if the class has no example."""
        square = self.class_squares / self.class_examples[:, None]
        return (square - self.class_mean.square()).clamp(min=0).sqrt()

    @property
    def variances(self) -> tuple[Tensor, Tensor] | None:
        """Variance of each expert's weight between classes and within, `[E]` each; None without classes."""
        if not int(self.class_examples.sum()):
            return None
        return statistics.variances(self.class_examples, self.class_sums, self.class_squares)

    @property
    def between_class_share(self) -> float | None:
        """Share of the weights' variance that lies between classes, 0 to 1; None without classes."""
        parts = self.variances
        return None if parts is None else statistics.between_class_share(*parts)

    @property
    def mutual_information(self) -> float | None:
        """Bits that the choice of an expert reveals about the class; None without classes."""
        if not int(self.class_examples.sum()):
            return None
        return statistics.mutual_information(self.class_examples, self.class_share_sums)

    @property
    def entropy(self) -> float:
        """Mean entropy of an example's mixture, in bits, 0 to log2(E)."""
        return float(self.entropy_sum / self.examples)

    @property
    def experts_per_example(self) -> float:
        """Effective number of experts in an example's mixture, 2 to the mean entropy: 1 to E."""
        return float(2.0**self.entropy)

    @property
    def experts_in_all(self) -> float:
        """Effective number of experts in use over all examples, 2 to the entropy of the mean shares: 1 to E."""
        return float(2.0 ** float(statistics.entropy(self.share_sums / self.examples)))

    @property
    def extremes(self) -> tuple[float, float]:
        """Shares of the weights that lie below 0.1, and at 0.9 and above."""
        return statistics.extremes(self.histogram)

    @property
    def bimodality(self) -> float:
        """Share of the weights that lie below 0.1, or at 0.9 and above."""
        return sum(self.extremes)

    @property
    def dead(self) -> tuple[int, ...]:
        """Experts, from 0, that no example gives a tenth of an equal share of the mixture."""
        return statistics.dead_experts(self.highest_shares)

    @property
    def duplicates(self) -> tuple[tuple[int, int], ...]:
        """Pairs of experts, from 0, whose kernels have a cosine similarity of 0.99 or more in every layer."""
        return duplicate_experts(self.similarity)


@dataclass(frozen=True)
class Intervention:
    """The accuracy of a network with changed routing weights.

    Attributes:
        name: The change, such as `"mean"`.
        routings: Names of the changed routing functions; empty for all of them.
        images: Number of images.
        agree: Images whose predicted class is the same.
        right: Images classified right; None without classes.
        gained: Images right now and wrong before; None without classes.
        lost: Images wrong now and right before; None without classes.
    """

    name: str
    routings: tuple[str, ...]
    images: int
    agree: int
    right: int | None = None
    gained: int | None = None
    lost: int | None = None

    @property
    def top1(self) -> float | None:
        """Accuracy, 0 to 1; None without classes."""
        return None if self.right is None else self.right / self.images

    @property
    def agreement(self) -> float:
        """Share of images whose predicted class is the same, 0 to 1."""
        return self.agree / self.images

    @property
    def cost(self) -> float:
        """Points of accuracy lost on the same images; without classes, points of predictions changed."""
        lost = self.images - self.agree if self.gained is None or self.lost is None else self.lost - self.gained
        return 100 * lost / self.images

    @property
    def cost_error(self) -> float:
        """Standard error of `cost`, in points: `sqrt(changed) / images`, for images that became right or wrong."""
        changed = self.images - self.agree if self.gained is None or self.lost is None else self.lost + self.gained
        return 100 * math.sqrt(changed) / self.images
