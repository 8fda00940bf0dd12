"""Draw the picture of the method that README.md and the documentation show.

`python scripts/draw_concept.py docs/assets/condconv.svg`. The kernels, their mixtures and the outputs are
computed from two of the digits of scikit-learn; the routing weights are chosen by hand, not learned.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from sklearn.datasets import load_digits
from torch.nn import functional

EXPERTS = torch.tensor(
    [
        [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]],
        [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
        [[1.0, 0.2, -1.0], [0.2, 1.0, 0.2], [-1.0, 0.2, 1.0]],
        [[-0.3, -0.3, -0.3], [-0.3, 1.0, -0.3], [-0.3, -0.3, -0.3]],
    ]
)
ROUTING_WEIGHTS = torch.tensor([[0.9, 0.1, 0.2, 0.5], [0.1, 0.8, 0.7, 0.1]])
EXAMPLES = (0, 7)
KERNEL_COLOURS = "PuOr"
TEXT = "#444444"
# Chosen to be told apart by readers who do not see all colours.
BARS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")


def show(axes: Axes, values: torch.Tensor, title: str, colours: str, largest: float) -> None:
    """Show a matrix as a picture without axes.

    Args:
        axes: Where.
        values: Matrix `[height, width]`.
        title: Line above it.
        colours: Name of a colour map.
        largest: Value of the last colour; the first stands for its opposite, or for 0 in a grey map.
    """
    smallest = 0.0 if colours.startswith("gray") else -largest
    axes.imshow(values.numpy(), cmap=colours, vmin=smallest, vmax=largest)
    axes.set_title(title, fontsize=10, color=TEXT)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#999999")


def show_weights(axes: Axes, weights: torch.Tensor) -> None:
    """Show the routing weights of one example as bars.

    Args:
        axes: Where.
        weights: Routing weights `[num_experts]`.
    """
    axes.bar(range(1, len(weights) + 1), weights.tolist(), color=BARS, width=0.7)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1])
    axes.set_xticks(range(1, len(weights) + 1), [f"r{'₁₂₃₄'[index]}" for index in range(len(weights))])
    axes.tick_params(length=0, labelsize=9, colors=TEXT)
    axes.set_title("routing weights r(x)", fontsize=10, color=TEXT)
    axes.spines[["top", "right"]].set_visible(False)


def draw() -> Figure:
    """Draw the experts above, and below them one row per example: image, weights, own kernel, output."""
    digits = load_digits()
    first = [int(np.flatnonzero(digits.target == digit)[0]) for digit in EXAMPLES]
    images = torch.tensor(digits.images[first], dtype=torch.float32) / 16
    kernels = torch.einsum("be,ehw->bhw", ROUTING_WEIGHTS, EXPERTS)

    figure = Figure(figsize=(9.2, 5.8), facecolor="white")
    top = GridSpec(1, 4, figure, left=0.29, right=0.73, top=0.88, bottom=0.70, wspace=0.35)
    figure.text(0.51, 0.96, "one layer, four expert kernels", ha="center", fontsize=12, color=TEXT)
    for index, expert in enumerate(EXPERTS):
        axes = figure.add_subplot(top[index])
        show(axes, expert, f"W{'₁₂₃₄'[index]}", KERNEL_COLOURS, 1.2)
        for spine in axes.spines.values():
            spine.set(color=BARS[index], linewidth=2.5)

    rows = GridSpec(2, 4, figure, left=0.03, right=0.98, top=0.56, bottom=0.06, wspace=0.45, hspace=0.5)
    for row, (image, weights, kernel) in enumerate(zip(images, ROUTING_WEIGHTS, kernels, strict=True)):
        output = functional.conv2d(image[None, None], kernel[None, None], padding=1)[0, 0]
        show(figure.add_subplot(rows[row, 0]), image, f"example {row + 1}", "gray_r", 1.0)
        show_weights(figure.add_subplot(rows[row, 1]), weights)
        mixture = "its own kernel\nr₁W₁ + r₂W₂ + r₃W₃ + r₄W₄"
        show(figure.add_subplot(rows[row, 2]), kernel, mixture, KERNEL_COLOURS, 1.6)
        show(figure.add_subplot(rows[row, 3]), output, "one convolution", KERNEL_COLOURS, 3.0)
        middle = figure.axes[-4].get_position()
        height = (middle.y0 + middle.y1) / 2
        for left, sign in ((0.225, "→"), (0.485, "→"), (0.74, "→")):
            figure.text(left, height, sign, ha="center", va="center", fontsize=18, color=TEXT)
    return figure


def main(path: str) -> None:
    """Draw the picture into a file.

    Args:
        path: File to write; its suffix decides the format.
    """
    # The same bytes at every run, so that the file changes only when the picture does.
    with mpl.rc_context({"svg.hashsalt": "condconv"}):
        draw().savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
