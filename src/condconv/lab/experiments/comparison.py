"""Three networks, the same seeds: their numbers, what routing itself brought, and what follows. Only arithmetic."""

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
        name: What tables call the network.
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


@dataclass(frozen=True)
class Comparison:
    """A network with routing between two others that were trained from the same seeds.

    Attributes:
        static: The ordinary network.
        control: The network with the same experts, and one mixture for all images.
        routed: The network whose mixtures depend on the image.
    """

    static: NetworkNumbers
    control: NetworkNumbers
    routed: NetworkNumbers

    @property
    def gains(self) -> tuple[float, ...]:
        """What routing itself brought in each seed: accuracy over that of the control, in points."""
        return tuple(
            100 * (routed - control)
            for control, routed in zip(self.control.accuracy, self.routed.accuracy, strict=True)
        )

    def interval(self, *, validation_images: int) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean gain, in points; None for a single seed.

        It is never narrower than one validation image on either side, however well the seeds agree.
        """
        half = confidence_half_width(self.gains)
        if half is None:
            return None
        half = max(half, 100 / validation_images)
        return mean(self.gains) - half, mean(self.gains) + half

    def verdict(self, *, validation_images: int, on: str) -> str:
        """Say in one sentence what the seeds show of routing, and what they do not.

        Args:
            validation_images: Their number, which bounds the interval.
            on: The data, as in "on digits".
        """
        gain, interval = mean(self.gains), self.interval(validation_images=validation_images)
        if interval is None:
            return (
                f"Nothing is shown with one seed, in which routing changed the accuracy by {gain:+.1f} points: take "
                "--seeds 3 or more."
            )
        low, high = interval
        seeds = f"95 % interval {low:+.1f} to {high:+.1f}, {len(self.gains)} seeds"
        if low <= 0 <= high:
            return (
                f"Not shown that routing helps on {on}: CondConv has {gain:+.1f} points of accuracy over the same "
                f"experts with one mixture for all images ({seeds}), which can be chance."
            )
        did = "gains" if gain > 0 else "loses"
        return (
            f"Routing {'helps' if gain > 0 else 'hurts'} on {on}: CondConv {did} {abs(gain):.1f} points of accuracy "
            f"over the same experts with one mixture for all images ({seeds}); this does not show the same for your "
            "images, for larger networks, or against a wider static network."
        )

    def table(self) -> list[list[str]]:
        """Return rows of cells: header, the three networks, and what routing itself brought over the control."""
        header = ["network", "parameters", "multiply-adds", "accuracy (%)", "training (images/s)"]
        routed, control = self.routed, self.control
        return [
            [*header, "inference (images/s)"],
            *map(_row, (self.static, control, routed)),
            [
                "routing itself",
                _ratio([control.params], [routed.params]),
                _ratio([control.madds], [routed.madds]),
                _plus_minus(self.gains, "+.2f"),
                _ratio(control.train_images_per_second, routed.train_images_per_second),
                _ratio(control.inference_images_per_second, routed.inference_images_per_second),
            ],
        ]


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, or None for a single value, which has none."""
    return stdev(values) if len(values) > 1 else None


def confidence_half_width(values: Sequence[float]) -> float | None:
    """Return half the 95 % confidence interval of the mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    quantile = _T975.get(len(values) - 1, 2.23)  # the value at 10 degrees of freedom, on the safe side beyond
    return quantile * stdev(values) / math.sqrt(len(values))


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
        format(median(numbers.train_images_per_second), ".0f"),
        format(median(numbers.inference_images_per_second), ".0f"),
    ]


def _plus_minus(values: Sequence[float], form: str) -> str:
    half = confidence_half_width(values)
    text = format(mean(values), form)
    return text if half is None else f"{text} ± {format(half, form.lstrip('+'))}"


def _ratio(old: Sequence[float], new: Sequence[float]) -> str:
    return f"x {median(new) / median(old):.2f}"


def thousands(value: int) -> str:
    """Return a count in thousands or millions, such as `15.7k`."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value / 1e3:.1f}k"
