"""The demo's picture of the routing: which experts it uses under each condition, and for each digit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from condconv.lab.data.digits import CONDITIONS
from condconv.lab.data.image_data import ImageData
from condconv.lab.experiments.routing_picture import Grouping, plot_routing
from condconv.lab.saved.inspection import record


def draw_routing(path: Path, network: nn.Module, data: ImageData) -> None:
    """Draw the mean routing weights of a CondConv network over the validation images, by condition and by digit.

    Args:
        path: PNG file to write.
        network: In evaluation mode, on the CPU.
        data: The digits under conditions.
    """
    images, digits = zip(*(data.val[index] for index in range(len(data.val))), strict=True)
    batches = torch.stack(images).split(256)
    conditions = [index % len(CONDITIONS) for index in range(len(digits))]
    # Of one digit all conditions; of each digit the first, which is plain.
    examples = {"condition": range(len(CONDITIONS)), "digit": [digits.index(digit) for digit in range(10)]}
    groupings = [
        Grouping(
            name, labels, _weights(network, batches, labels, groups), [_picture(data, each) for each in examples[name]]
        )
        for name, labels, groups in (("condition", CONDITIONS, conditions), ("digit", data.class_names, digits))
    ]
    plot_routing(path, groupings, title="Which experts each convolution uses: mean routing weights")


def _weights(
    network: nn.Module, batches: Sequence[Tensor], labels: Sequence[str], groups: Sequence[int]
) -> dict[str, Tensor]:
    """Return the mean routing weights of each group of images, by the name of the layer."""
    of_groups = torch.tensor(groups).split(len(batches[0]))
    routings = record(network, zip(batches, of_groups, strict=True), tuple(labels)).routings
    return {f"convolution {number}": each.class_mean for number, each in enumerate(routings, start=1)}


def _picture(data: ImageData, index: int) -> np.ndarray[Any, Any]:
    return np.asarray(data.val.read(index)[0])
