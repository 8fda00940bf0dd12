"""Pictures: learning curves and routing weights, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from condconv.errors import UsageError, check_type, require_extra, shown
from condconv.files.atomic import write_own

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
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
    for colour, (name, seeds) in zip(cycle(_COLOURS), accuracy.items(), strict=False):
        _band(left, 100 * np.asarray(seeds), name, colour)
    for colour, (name, seeds) in zip(cycle(_COLOURS), loss.items(), strict=False):
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


def plot_routing(
    path: str | Path, mean_weights: Tensor, class_names: Sequence[str], *, title: str, most_classes: int = 40
) -> None:
    """Draw the mean routing weight of each class (rows) on each expert (columns).

    Args:
        path: PNG file to write.
        mean_weights: `[K, E]`, 0 to 1 with sigmoid and softmax routing.
        class_names: The K names.
        title: Title of the picture.
        most_classes: With more classes, only this many are drawn, and the title says so.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: The file cannot be written.
    """
    check_type(
        "mean_weights", mean_weights, (Tensor, np.ndarray), "be a tensor [K, E]", "give RoutingRecord.class_mean"
    )
    if mean_weights.ndim != 2 or len(mean_weights) != len(class_names):
        raise UsageError(
            f"`mean_weights` must have a row for each of {len(class_names)} class names, got shape "
            f"{tuple(mean_weights.shape)}: name each class"
        )
    if type(most_classes) is not int or most_classes < 1:
        raise UsageError(f"`most_classes` must be a whole number of at least 1, got {shown(most_classes)}: give one")
    weights = np.asarray(mean_weights, dtype=float)[:most_classes]
    classes, experts = weights.shape
    if classes < len(class_names):
        title += f" (first {classes} of {len(class_names)} classes)"
    figure, axes = new_figure(1, (2.6 + 0.55 * experts, 1.7 + 0.34 * classes))
    image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=max(1.0, float(np.nanmax(weights))), aspect="auto")
    axes.set_xticks(range(experts), [str(expert + 1) for expert in range(experts)])
    axes.set_yticks(range(classes), list(class_names)[:classes])
    axes.set(xlabel="expert", ylabel="class")
    if experts <= 16:
        for row, column in np.ndindex(classes, experts):
            value = weights[row, column]
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label="mean routing weight")
    axes.set_title(title, fontsize=11)
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


def new_figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure of matplotlib's, of a size in inches, and its axes; several are next to one another.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # The object interface, not pyplot: no window system is asked for and no figure stays in memory.
    figure = require_extra("matplotlib.figure", "train").Figure(figsize=size, dpi=_DPI, layout="constrained")
    return figure, figure.subplots(1, columns)


def _band(axes: Any, seeds: np.ndarray[Any, Any], name: str, colour: str) -> None:
    epochs = np.arange(1, seeds.shape[1] + 1)
    axes.plot(epochs, seeds.mean(axis=0), label=name, color=colour, marker="o" if len(epochs) == 1 else None)
    if len(seeds) > 1:
        axes.fill_between(epochs, seeds.min(axis=0), seeds.max(axis=0), color=colour, alpha=0.2, linewidth=0)
