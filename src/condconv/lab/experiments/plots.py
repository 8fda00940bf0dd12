"""Learning curves as a PNG file, and what all pictures have in common."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from condconv.errors import UsageError, check_type, require_extra, shown
from condconv.files.atomic import write_own

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
_DPI = 150


def plot_learning_curves(
    path: str | Path,
    accuracy: Mapping[str, Sequence[Sequence[float]]],
    loss: Mapping[str, Sequence[Sequence[float]]],
    *,
    title: str,
) -> None:
    """Draw validation accuracy and training loss by epoch: mean over seeds, and their range as a band.

    Args:
        path: PNG file to write.
        accuracy: For each network, a list of seeds, each a list of one accuracy (0 to 1) per epoch.
        loss: The training losses, the same way.
        title: Title of the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: The file cannot be written.
    """
    for argument, curves in (("accuracy", accuracy), ("loss", loss)):
        rule, remedy = "hold a list of seeds for each network", "give {name: [[0.1, 0.5], ...]}"
        check_type(argument, curves, Mapping, rule, remedy)
        if not curves or any(np.asarray(seeds, dtype=object).ndim < 2 for seeds in curves.values()):
            raise UsageError(f"`{argument}` must {rule}, got {shown(curves)}: {remedy}")
    figure, (left, right) = new_figure(2, (9.0, 3.8))
    for colour, (name, seeds) in zip(cycle(COLOURS), accuracy.items(), strict=False):
        _band(left, 100 * np.asarray(seeds), name, colour)
    for colour, (name, seeds) in zip(cycle(COLOURS), loss.items(), strict=False):
        _band(right, np.asarray(seeds), name, colour)
    left.set(xlabel="epoch", ylabel="validation accuracy (%)")
    highest = max(100 * np.asarray(seeds).max() for seeds in accuracy.values())
    # The first epochs near chance would compress the part where the networks differ into a few pixels.
    left.set_ylim(max(0.0, highest - 30), min(100.5, highest + 2))
    right.set(xlabel="epoch", ylabel="training loss (nats)")
    ticker = require_extra("matplotlib.ticker", "train")
    right.set_yscale("log")
    for formatter in (right.yaxis.set_major_formatter, right.yaxis.set_minor_formatter):
        formatter(ticker.FormatStrFormatter("%.2g"))
    for axes in (left, right):
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
    count = len(next(iter(accuracy.values())))
    spread = f"mean of {count} seeds, band: lowest to highest" if count > 1 else "one seed"
    figure.suptitle(f"{title}\n{spread}")
    save_figure(figure, Path(path))


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib's, whole or not at all, as the suffix says; PNG without one.

    Texts are drawn literally: matplotlib reads dollar signs as formulas, and the name of a class may have some.

    Raises:
        UsageError: The file cannot be written.
    """
    for text in figure.findobj(require_extra("matplotlib.text", "train").Text):
        text.set_parse_math(False)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix(".") or "png")
    write_own(path, content.getvalue())


def new_figure(columns: int, size: tuple[float, float], rows: int | None = None, **ratios: Any) -> tuple[Any, Any]:
    """Return a figure of matplotlib's, of a size in inches, and its axes; several are next to one another.

    Args:
        columns: Number of axes in a row.
        size: Width and height.
        rows: None for one row; otherwise the axes are an array `[rows, columns]`.
        **ratios: matplotlib's `width_ratios` and `height_ratios`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # The object interface, not pyplot: no window system is asked for and no figure stays in memory.
    figure = require_extra("matplotlib.figure", "train").Figure(figsize=size, dpi=_DPI, layout="constrained")
    return figure, figure.subplots(rows or 1, columns, squeeze=rows is None, **ratios)


def _band(axes: Any, seeds: np.ndarray[Any, Any], name: str, colour: str) -> None:
    epochs = np.arange(1, seeds.shape[1] + 1)
    axes.plot(epochs, seeds.mean(axis=0), label=name, color=colour, marker="o" if len(epochs) == 1 else None)
    if len(seeds) > 1:
        axes.fill_between(epochs, seeds.min(axis=0), seeds.max(axis=0), color=colour, alpha=0.2, linewidth=0)
