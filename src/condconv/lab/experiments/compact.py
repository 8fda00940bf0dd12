"""Whether about one kernel has the gain of several: the arms, and the rule, which was fixed before the runs.

An arm is eligible if its experts share one kernel and the network has at most 1.2 times the static one's parameters.
The answer is yes for a network if, over the seeds, one eligible arm

- has at least 70 % of the gain of whole kernels ("deltas"), and surely more than 50 %;
- is surely above a static network of as many parameters, and above one of as many multiply-adds, which are found
  between the static widths that were trained.

"Surely" is the 95 % interval of the paired differences, Student's t. No more is claimed than squeeze-and-excitation
gives unless the arm is surely above that, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log
from statistics import mean
from typing import Any, NamedTuple

from condconv.lab.experiments.comparison import confidence_half_width
from condconv.lab.experiments.design import Arm

MOST_PARAMS, LEAST_SHARE, SURE_SHARE = 1.2, 0.7, 0.5
WIDTHS = ("113", "131", "150", "175")
"""Of static networks, in percent, besides 100."""


class Result(NamedTuple):
    """What one run gave: its score in percent, parameters, and multiply-adds for one image."""

    score: float
    params: int
    madds: int


def arms(network: str, num_experts: int) -> tuple[Arm, ...]:
    """Return the arms for one of the networks for small images, such as `"small_dense"`."""
    static = f"{network}, static"

    def arm(label: str, model: str, **options: Any) -> Arm:
        return Arm(f"{network}, {label}", model, options, against=static)

    def experts(label: str, store: str, number: int = num_experts, **options: Any) -> Arm:
        return arm(label, f"{network}_cc_100_{number}e", experts=store, **options)

    alike: dict[str, Any] = {"routing": "constant(learn=True)"}
    return (
        arm("static", f"{network}_100"),
        *(arm(f"static, {width} % wide", f"{network}_{width}") for width in WIDTHS),
        arm("squeeze-and-excitation", f"{network}_100", se=0.25),
        experts("deltas", "deltas"),
        experts("deltas, images alike", "deltas", **alike),
        experts("shared", "shared"),
        experts("shared, images alike", "shared", **alike),
        experts("shared, rank 3", "shared(rank=3)"),  # at most the three channels of an image
        experts("shared, rank 2", "shared(rank=2)"),
        experts("shared, gains", "shared(rank=None, gains=True)"),
        experts("shared, half the experts", "shared", max(2, num_experts // 2)),
    )


def answer(network: str, results: Mapping[str, Mapping[int, Result]]) -> str:
    """Return what the rule says of a network, in one sentence.

    Args:
        network: As in `arms`.
        results: By label of the arm, and by seed. Arms that are missing are left out.
    """
    own = {label.removeprefix(f"{network}, "): each for label, each in results.items() if label.startswith(network)}
    static, whole = own.get("static", {}), own.get("deltas", {})
    shared = {label: each for label, each in own.items() if label.startswith("shared") and "alike" not in label}
    seeds = sorted(set(static).intersection(whole))
    if len(seeds) < 2 or not shared:
        return (
            f"{network}: no answer yet, which takes two seeds of the static network, of deltas and of shared experts."
        )
    found = {label: _failed(label, own, [seed for seed in seeds if seed in each]) for label, each in shared.items()}
    passed = [label for label, failed in found.items() if failed is None]
    if passed:
        ahead = [label for label in passed if _is_above_excitation(own, own[label])]
        beyond = (
            f"; {', '.join(ahead)} beyond squeeze-and-excitation" if ahead else "; none beyond squeeze-and-excitation"
        )
        return f"{network}: yes, by {', '.join(passed)}{beyond}."
    return f"{network}: no; " + "; ".join(f"{label}: {failed}" for label, failed in found.items()) + "."


def _failed(label: str, own: Mapping[str, Mapping[int, Result]], seeds: Sequence[int]) -> str | None:
    """Return the first condition that an arm does not meet, or `None`."""
    if len(seeds) < 2:
        return "too few seeds"
    arm, static, whole = own[label], own["static"], own["deltas"]
    ratio = arm[seeds[0]].params / static[seeds[0]].params
    if ratio > MOST_PARAMS:
        return f"{ratio:.2f} times the parameters"
    gains = [arm[seed].score - static[seed].score for seed in seeds]
    wholes = [whole[seed].score - static[seed].score for seed in seeds]
    if mean(wholes) <= 0 or mean(gains) < LEAST_SHARE * mean(wholes):
        return f"{mean(gains):+.1f} points of {mean(wholes):+.1f}"
    if not _surely_positive([ours - SURE_SHARE * all_ for ours, all_ in zip(gains, wholes, strict=True)]):
        return "not surely half of the gain"
    for cost in ("params", "madds"):
        differences = [arm[seed].score - _frontier(own, seed, cost, getattr(arm[seed], cost)) for seed in seeds]
        if not _surely_positive(differences):
            return f"not surely above a static network of as many {cost} ({mean(differences):+.1f} points)"
    return None


def _frontier(own: Mapping[str, Mapping[int, Result]], seed: int, cost: str, at: int) -> float:
    """Return the score of static networks at a cost, between those that were trained with a seed; flat beyond them."""
    widths = (each[seed] for label, each in own.items() if label.startswith("static") and seed in each)
    points = sorted((log(getattr(each, cost)), each.score) for each in widths)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= log(at) <= x1:
            return y0 + (y1 - y0) * (log(at) - x0) / (x1 - x0)
    return points[0][1] if log(at) < points[0][0] else points[-1][1]


def _is_above_excitation(own: Mapping[str, Mapping[int, Result]], arm: Mapping[int, Result]) -> bool:
    other = own.get("squeeze-and-excitation", {})
    return _surely_positive([arm[seed].score - other[seed].score for seed in arm if seed in other])


def _surely_positive(differences: Sequence[float]) -> bool:
    half = confidence_half_width(differences)
    return half is not None and mean(differences) > half
