"""A picture of an elastic network's members: accuracy against what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condconv.errors import UsageError, check_type, shown, shown_name
from condconv.files.paths import check_can_write
from condconv.lab.experiments.plots import COLOURS, new_figure, save_figure

SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class Curve:
    """One way to count what members cost.

    Attributes:
        name: Of the axis, with the unit.
        values: By the names of the lines, one value for each member. A name is shown if there are several.
        spread: By the names of lines, the lowest and the highest value of each member; those with one
            are drawn as points with bars, the others as points on a line.
    """

    name: str
    values: Mapping[str, Sequence[float]]
    spread: Mapping[str, Sequence[tuple[float, float]]]


def check_picture(path: str | Path) -> None:
    """Check, before the work begins, that a picture can be written.

    Raises:
        UsageError: It has another suffix than .png or .svg, or the file cannot be written.
    """
    if Path(path).suffix not in SUFFIXES:
        raise UsageError(f"`plot` must end in .png or .svg, got {shown_name(path)}: the suffix says what is drawn")
    check_can_write(Path(path), "plot")


def plot_members(
    path: str | Path, numbers: Sequence[int], accuracy: Sequence[float], curves: Sequence[Curve], *, title: str
) -> None:
    """Draw the accuracy of members against each of their costs, one next to another; points have the members' numbers.

    Args:
        path: PNG or SVG file to write.
        numbers: Of the members, the smallest first.
        accuracy: Of the members, 0 to 1.
        curves: At least two costs.
        title: Title of the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: A cost does not have one value per member, or the file cannot be written.
    """
    check_picture(path)
    check_type("curves", curves, Sequence, "hold a Curve for each cost", "give two or more")
    if len(curves) < 2 or any(len(each) != len(numbers) for curve in curves for each in curve.values.values()):
        raise UsageError(f"`curves` must hold two costs or more of all members, got {shown(curves)}: give each a value")
    figure, row = new_figure(len(curves), (3.6 * len(curves), 3.8))
    points = 100 * np.asarray(accuracy)
    for axes, curve in zip(row, curves, strict=True):
        for colour, (name, values) in zip(COLOURS, curve.values.items(), strict=False):
            _draw(axes, np.asarray(values, dtype=float), points, numbers, name, colour, curve.spread.get(name))
        axes.set(xlabel=curve.name)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(alpha=0.3)
        axes.margins(x=0.08, y=0.12)
        if len(curve.values) > 1:
            axes.legend(frameon=False, loc="lower right")
    row[0].set(ylabel="validation accuracy (%)")
    figure.suptitle(title, fontsize=11)
    save_figure(figure, Path(path))


def _draw(
    axes: Any,
    values: np.ndarray[Any, Any],
    points: np.ndarray[Any, Any],
    numbers: Sequence[int],
    name: str,
    colour: str,
    spread: Sequence[tuple[float, float]] | None,
) -> None:
    bars = None if spread is None else np.abs(np.asarray(spread, dtype=float).T - values)
    style = "-" if bars is None else "none"  # measured values need not be in order
    looks = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.2, "elinewidth": 0.8}
    axes.errorbar(values, points, xerr=bars, label=name, linestyle=style, **looks)
    for number, value, point in zip(numbers, values, points, strict=True):
        axes.annotate(str(number), (value, point), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8)
