"""Two networks, the same seeds: their numbers, the difference, and what follows from them. Only arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

_T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantile of Student's t by degrees of freedom, from any table."""


@dataclass(frozen=True)
class NetworkNumbers:
    """What was measured of one network.

    Attributes:
        name: Name of the network.
        params: Number of parameters.
        madds: Multiply-adds for one image.
        accuracy: Top-1 on the validation images after the last epoch, 0 to 1, one per seed.
        train_images_per_second: One per seed.
        inference_images_per_second: One per repetition.
    """

    name: str
    params: int
    madds: int
    accuracy: tuple[float, ...]
    train_images_per_second: tuple[float, ...]
    inference_images_per_second: tuple[float, ...]


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, or None for a single value, which has none."""
    return stdev(values) if len(values) > 1 else None


def confidence_half_width(differences: Sequence[float]) -> float | None:
    """Return half the 95 % confidence interval of the mean of paired differences; None for a single one."""
    if len(differences) < 2:
        return None
    quantile = _T975.get(len(differences) - 1, 2.23)  # the value at 10 degrees of freedom, on the safe side beyond
    return quantile * stdev(differences) / math.sqrt(len(differences))


def verdict(static: NetworkNumbers, conditional: NetworkNumbers, *, validation_images: int) -> str:
    """Say in one line whether the conditional network is better, by the paired 95 % interval over the seeds.

    A difference below one validation image never counts as an effect, however well the seeds agree.
    """
    differences = [theirs - ours for ours, theirs in zip(static.accuracy, conditional.accuracy, strict=True)]
    points = 100 * mean(differences)
    half = confidence_half_width(differences)
    if half is None:
        return f"Undecided: {points:+.2f} points with one seed, which has no spread; take --seeds 3 or more."
    width = 100 * max(half, 1 / validation_images)
    said = f"{points:+.2f} points of accuracy, 95 % interval ±{width:.2f} over {len(differences)} seeds"
    if abs(points) <= width:
        return f"No difference within the spread on this data: {said}."
    return f"CondConv {'helps' if points > 0 else 'hurts'} on this data: {said}."


def table(static: NetworkNumbers, conditional: NetworkNumbers) -> list[list[str]]:
    """Return the comparison as rows of cells: header, the two networks, their difference."""
    header = ["network", "params", "MADDs", "accuracy (%)", "training (images/s)", "inference (images/s)"]
    differences = [theirs - ours for ours, theirs in zip(static.accuracy, conditional.accuracy, strict=True)]
    last = [
        "difference",
        _ratio([static.params], [conditional.params]),
        _ratio([static.madds], [conditional.madds]),
        _plus_minus([100 * each for each in differences], "+.2f"),
        _ratio(static.train_images_per_second, conditional.train_images_per_second),
        _ratio(static.inference_images_per_second, conditional.inference_images_per_second),
    ]
    return [header, _row(static), _row(conditional), last]


def as_markdown(rows: list[list[str]]) -> str:
    """Return rows of cells as a Markdown table whose columns line up in plain text too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = "| " + " | ".join("-" * w if c == 0 else "-" * (w - 1) + ":" for c, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _row(numbers: NetworkNumbers) -> list[str]:
    return [
        numbers.name,
        thousands(numbers.params),
        thousands(numbers.madds),
        _plus_minus([100 * each for each in numbers.accuracy], ".2f"),
        _plus_minus(numbers.train_images_per_second, ".0f", middle=median),
        _plus_minus(numbers.inference_images_per_second, ".0f", middle=median),
    ]


def _plus_minus(values: Sequence[float], form: str, *, middle=mean) -> str:  # type: ignore[no-untyped-def]
    width = spread(values)
    text = format(middle(values), form)
    return text if width is None else f"{text} ± {format(width, form.lstrip('+'))}"


def _ratio(old: Sequence[float], new: Sequence[float]) -> str:
    return f"x {median(new) / median(old):.2f}"


def thousands(value: int) -> str:
    """Return a count in thousands or millions, such as `15.7k`."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value / 1e3:.1f}k"
