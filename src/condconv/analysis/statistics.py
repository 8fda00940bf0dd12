"""Statistics of a routing function from sums over examples: pure functions of tensors, in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 40
"""Bins of the histograms of weights, equally wide, from 0 to 1; 0.1 and 0.9 are edges of bins."""
NEAR = 0.1
"""A weight below this, or not below one minus this, counts as decided."""
DEAD_SHARE = 0.1
"""An expert is dead if no example gives it this part of an equal share of the mixture."""
# Below this part of the mean square, a variance is the rounding of fp32 weights and not spread.
_ROUNDING = 1e-12


def shares(weights: Tensor) -> Tensor:
    """Return each expert's share of the mixture, `|r| / sum |r|`, `[B, E]` of weights `[B, E]`.

    An example whose weights are all zero has equal shares.
    """
    sizes = weights.abs()
    total = sizes.sum(1, keepdim=True)
    return torch.where(total > 0, sizes / total, 1 / weights.shape[1])


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy along the last dimension, in bits; NaN if the probabilities are NaN.

    Example:
        >>> entropy(torch.tensor([0.5, 0.25, 0.25]))
        tensor(1.5000)
    """
    return torch.special.entr(probabilities).sum(-1) / torch.log(torch.tensor(2.0, dtype=probabilities.dtype))


def histogram(weights: Tensor) -> Tensor:
    """Return how many examples give each expert a weight of each bin, `[E, BINS]` int64, of weights `[B, E]`.

    Weights outside 0 to 1 are counted in the outermost bins.
    """
    experts = weights.shape[1]
    bins = (weights * BINS).floor().clamp(0, BINS - 1).long() + BINS * torch.arange(experts)
    return torch.bincount(bins.flatten(), minlength=experts * BINS).reshape(experts, BINS)


def variances(examples: Tensor, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Split the variance of each expert's weight into the variances between classes and within classes.

    Args:
        examples: Examples of each class, `[K]`.
        sums: Sum of the weights of each class, `[K, E]`.
        squares: Sum of their squares, `[K, E]`.

    Returns:
        Two variances `[E]` (population), which add up to the variance over all examples.
    """
    seen = examples > 0
    counts = examples[seen].double()
    total = counts.sum()
    mean = sums.sum(0) / total
    mean_square = squares.sum(0) / total
    class_means = sums[seen] / counts[:, None]
    between = (counts[:, None] * (class_means - mean).square()).sum(0) / total
    within = mean_square - (counts[:, None] * class_means.square()).sum(0) / total
    floor = _ROUNDING * mean_square
    return torch.where(between > floor, between, 0.0), torch.where(within > floor, within, 0.0)


def variation(examples: Tensor, sums: Tensor, squares: Tensor) -> float:
    """Return how much weights vary over examples, relative to their size: 0 if all examples have the same weights.

    It is the root of the share of the weights' mean square that is variance over examples. One half of the examples
    with a weight of 0.4 and the other with 0.6 give 0.2; examples that use one of E experts each, all equally often,
    give the most, `sqrt(1 - 1 / E)`.

    Args:
        examples: Number of examples, `[]`.
        sums: Sum of the weights, `[E]`.
        squares: Sum of their squares, `[E]`.

    Example:
        >>> weights = torch.tensor([[0.4], [0.6]], dtype=torch.float64)
        >>> round(variation(torch.tensor(2), weights.sum(0), weights.square().sum(0)), 2)
        0.2
    """
    mean_squares = squares / examples
    variance = mean_squares - (sums / examples).square()
    variance = torch.where(variance > _ROUNDING * mean_squares, variance, 0.0)
    total = mean_squares.sum()
    return float((variance.sum() / total).sqrt()) if total > 0 else 0.0


def kernel_variation(examples: Tensor, sums: Tensor, products: Tensor, terms: Tensor) -> float:
    """Return how much kernels vary over examples, relative to their size: 0 if all have the same kernel, at most 1.

    It is the root of the share of the kernels' mean square that is variance over examples: `E |W - E W|^2 / E |W|^2`,
    where `|.|^2` sums over the entries of a kernel. So it means the same for every store of experts.

    Args:
        examples: Number of examples, `[]`.
        sums: Sum of the weights, `[E]`.
        products: Sum of the outer products of the weights with themselves, `[E, E]`.
        terms: Scalar products of the kernel's terms, `[1 + E, 1 + E]`, of `condconv.analysis.experts.kernel_products`.

    Example:
        One kernel of norm 2, to which half of the examples add another, of norm 1 and at a right angle:

        >>> weights = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> terms = torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> round(kernel_variation(torch.tensor(2), weights.sum(0), weights.mT @ weights, terms) ** 2, 4)  # 0.25 / 4.5
        0.0556
    """
    mean = sums / examples
    covariance = products / examples - mean.outer(mean)
    at = torch.cat([mean.new_ones(1), mean])
    square_of_mean = (at @ terms @ at).clamp(min=0)  # rounding may leave less of kernels that cancel
    variance = (covariance * terms[1:, 1:]).sum()
    variance = torch.where(variance > _ROUNDING * square_of_mean, variance, 0.0)
    mean_square = square_of_mean + variance
    return float((variance / mean_square).sqrt()) if mean_square > 0 else 0.0


def leeway(examples: Tensor, sums: Tensor, squares: Tensor) -> float:
    """Return how far weights between 0 and 1 are from both ends: 1 in the middle, 0 at the ends.

    It is the mean of `r (1 - r)`, by which the gradients of a sigmoid and of a softmax are multiplied, relative to its
    largest value: at 1/2 for a sigmoid, at `1 / E` for weights that sum to one.

    Args:
        examples: Number of examples, `[]`.
        sums: Sum of the weights, `[E]`.
        squares: Sum of their squares, `[E]`.
    """
    experts = len(sums)
    sum_to_one = abs(float(sums.sum() / examples) - 1) < 1e-3
    most = 1 - 1 / experts if sum_to_one else experts / 4
    return float((sums - squares).sum() / examples) / most


def mean_similarity(similarity: Tensor) -> float:
    """Return the mean over pairs of different experts, of similarities `[E, E]` of two or more experts."""
    experts = len(similarity)
    return float(similarity.sum() - similarity.diagonal().sum()) / (experts * (experts - 1))


def between_class_share(between: Tensor, within: Tensor) -> float:
    """Return the share of the variance that lies between classes, all experts together; 0 without any variance."""
    total = (between + within).sum()
    return float(between.sum() / total) if total > 0 else 0.0


def chance_share(examples: Tensor) -> float:
    """Return the between-class share that classes drawn at random would have on average, `(K - 1) / (N - 1)`.

    Args:
        examples: Examples of each class, `[K]`; classes that were not seen do not count.
    """
    total = int(examples.sum())
    return (int((examples > 0).sum()) - 1) / (total - 1) if total > 1 else 1.0


def mutual_information(examples: Tensor, share_sums: Tensor) -> float:
    """Return how much the choice of an expert reveals about the class, in bits.

    An expert is drawn for each example, each with its share of the mixture. Then `I = H(mean share) - mean over
    classes of H(mean share in the class)`, with classes weighted by their examples.

    Args:
        examples: Examples of each class, `[K]`.
        share_sums: Sum of the shares of each class, `[K, E]`.
    """
    seen = examples > 0
    counts = examples[seen].double()
    conditional = entropy(share_sums[seen] / counts[:, None])
    whole = entropy(share_sums.sum(0) / counts.sum())
    return max(0.0, float(whole - (counts * conditional).sum() / counts.sum()))


def extremes(counts: Tensor) -> tuple[float, float]:
    """Return the shares of the weights that lie below 0.1, and at 0.9 and above, of a histogram `[E, BINS]`."""
    width = round(NEAR * BINS)
    return float(counts[:, :width].sum() / counts.sum()), float(counts[:, -width:].sum() / counts.sum())


def dead_experts(highest_shares: Tensor) -> tuple[int, ...]:
    """Return the experts that no example gives a tenth of an equal share of the mixture.

    Args:
        highest_shares: The highest share that any example gives each expert, `[E]`.
    """
    dead = highest_shares < DEAD_SHARE / len(highest_shares)
    return tuple(dead.nonzero().flatten().tolist())
