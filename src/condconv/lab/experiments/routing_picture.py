"""A picture of routing weights: which experts the images of a group use, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from condconv.errors import UsageError, check_type, shown
from condconv.lab.experiments.plots import new_figure, save_figure


@dataclass(frozen=True)
class Grouping:
    """Images that were put into K groups, and the routing weights of each group.

    Attributes:
        name: What a group is, such as "class".
        labels: The K groups.
        weights: By the name of each layer, the mean weight of each group on each of its experts, `[K, E]`.
        pictures: A picture of each group, grey, `[H, W]` from 0 to 255, all of one size; none if empty.
    """

    name: str
    labels: Sequence[str]
    weights: Mapping[str, Tensor]
    pictures: Sequence[np.ndarray[Any, Any]] = ()


def plot_routing(path: str | Path, groupings: Sequence[Grouping], *, title: str) -> None:
    """Draw the mean routing weights as heat maps: a row of them for each grouping, one for each layer.

    Args:
        path: PNG file to write.
        groupings: Of the same images and the same layers.
        title: Title of the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: There is nothing to draw, a grouping does not fit its weights, or the file cannot be written.
    """
    check_type("groupings", groupings, Sequence, "hold a Grouping of images", "give one or more")
    for grouping in groupings:
        _check(grouping)
    layers = list(groupings[0].weights) if groupings else []
    if not layers:
        raise UsageError(f"`groupings` must have the weights of a layer, got {shown(groupings)}: record some")
    experts = max(weights.shape[1] for weights in groupings[0].weights.values())
    heights = [len(grouping.labels) for grouping in groupings]
    figure, grid = new_figure(
        1 + len(layers),
        (1.2 + 0.46 * experts * len(layers), 1.5 + 0.34 * sum(heights)),
        rows=len(groupings),
        width_ratios=[1.4, *(experts for _ in layers)],
        height_ratios=heights,
    )
    for axes_of_row, grouping in zip(grid, groupings, strict=True):
        _show_groups(axes_of_row[0], grouping)
        for axes, (layer, weights) in zip(axes_of_row[1:], grouping.weights.items(), strict=True):
            image = _show_weights(axes, np.asarray(weights, dtype=float))
            axes.set_title(layer if grouping is groupings[0] else "", fontsize=10)
            axes.set_xlabel("expert" if grouping is groupings[-1] else "")
    figure.colorbar(image, ax=grid[:, -1], label="mean routing weight")
    figure.suptitle(title, fontsize=11)
    save_figure(figure, Path(path))


def _check(grouping: Grouping) -> None:
    for layer, weights in grouping.weights.items():
        if np.ndim(weights) != 2 or len(weights) != len(grouping.labels):
            raise UsageError(
                f"`groupings` must have weights [K, E] with a row for each of {len(grouping.labels)} labels, got "
                f"{shown(tuple(np.shape(weights)))} for {shown(layer)}: name each group"
            )


def _show_groups(axes: Any, grouping: Grouping) -> None:
    """Draw a picture of each group, one above another, with the groups' names."""
    rows = len(grouping.labels)
    axes.set_yticks(np.arange(rows) + 0.5, list(grouping.labels))
    axes.set_xticks([])
    axes.set(ylabel=grouping.name, xlim=(0, 1), ylim=(rows, 0))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row, picture in enumerate(grouping.pictures):
        inset = axes.inset_axes((0.0, 1 - (row + 0.96) / rows, 1.0, 0.92 / rows))
        inset.imshow(picture, cmap="gray", vmin=0, vmax=255)
        inset.set_axis_off()


def _show_weights(axes: Any, weights: np.ndarray[Any, Any]) -> Any:
    image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=max(1.0, float(np.nanmax(weights))), aspect="auto")
    axes.set_xticks(range(weights.shape[1]), [str(expert + 1) for expert in range(weights.shape[1])])
    axes.set_yticks([])
    for row, column in np.ndindex(*weights.shape):
        value = weights[row, column]
        colour = "white" if value < 0.6 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    return image
