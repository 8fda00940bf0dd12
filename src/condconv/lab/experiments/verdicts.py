"""Rules, fixed before the runs, that answer the question of an experiment from its results.

An experiment names its rule. Files hold the name only, so a file can choose one of these rules and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import log
from statistics import mean
from typing import NamedTuple, TypeAlias

from condconv.lab.experiments.comparison import confidence_half_width

MOST_PARAMS, LEAST_SHARE, SURE_SHARE = 1.2, 0.7, 0.5


class Result(NamedTuple):
    """What one run gave: its score in percent, parameters, and multiply-adds for one image."""

    score: float
    params: int
    madds: int


Results: TypeAlias = Mapping[str, Mapping[int, Result]]
"""Of the runs, by label of the arm and by seed."""


def about_one_kernel(results: Results) -> list[str]:
    """Return whether about one kernel has the gain of several, in one sentence for each network.

    An arm is eligible if its experts share one kernel and the network has at most 1.2 times the static one's
    parameters. The answer is yes for a network if, over the seeds, one eligible arm

    - has at least 70 % of the gain of whole kernels ("deltas"), and surely more than 50 %;
    - is surely above a static network of as many parameters, and above one of as many multiply-adds, which are found
      between the static widths that were trained.

    "Surely" is the 95 % interval of the paired differences, Student's t. No more is claimed than squeeze-and-excitation
    gives unless the arm is surely above that, too.

    Args:
        results: Of the arms of `condconv.lab.experiments.compact`, whose labels start with the network's name. Arms
            that are missing are left out.
    """
    networks = dict.fromkeys(label.partition(",")[0] for label in results)
    return [_about_one_kernel_for(network, results) for network in networks]


RULES: Mapping[str, Callable[[Results], list[str]]] = {"about one kernel": about_one_kernel}
"""By the names that experiments have for them."""


def _about_one_kernel_for(network: str, results: Results) -> str:
    """Return the verdict on one network, in one sentence."""
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


def _failed(label: str, own: Results, seeds: Sequence[int]) -> str | None:
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


def _frontier(own: Results, seed: int, cost: str, at: int) -> float:
    """Return the score of static networks at a cost, between those that were trained with a seed; flat beyond them."""
    widths = (each[seed] for label, each in own.items() if label.startswith("static") and seed in each)
    points = sorted((log(getattr(each, cost)), each.score) for each in widths)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= log(at) <= x1:
            return y0 + (y1 - y0) * (log(at) - x0) / (x1 - x0)
    return points[0][1] if log(at) < points[0][0] else points[-1][1]


def _is_above_excitation(own: Results, arm: Mapping[int, Result]) -> bool:
    other = own.get("squeeze-and-excitation", {})
    return _surely_positive([arm[seed].score - other[seed].score for seed in arm if seed in other])


def _surely_positive(differences: Sequence[float]) -> bool:
    half = confidence_half_width(differences)
    return half is not None and mean(differences) > half
