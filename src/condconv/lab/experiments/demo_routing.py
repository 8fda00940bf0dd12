"""The demo's picture of the routing: which experts it uses under each condition, and for each digit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

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
    digits = [data.val.read(index)[1] for index in range(len(data.val))]
    conditions = [index % len(CONDITIONS) for index in range(len(data.val))]
    # Of one digit all conditions; of each digit the first, which is plain.
    examples = {"condition": range(len(CONDITIONS)), "digit": [digits.index(digit) for digit in range(10)]}
    groupings = [
        _grouping(name, labels, groups, network, data, examples[name])
        for name, labels, groups in (("condition", CONDITIONS, conditions), ("digit", data.class_names, digits))
    ]
    plot_routing(path, groupings, title="Which experts each convolution uses: mean routing weights")


def _grouping(
    name: str,
    labels: Sequence[str],
    groups: Sequence[int],
    network: nn.Module,
    data: ImageData,
    examples: Sequence[int],
) -> Grouping:
    images = torch.stack([data.val[index][0] for index in range(len(data.val))])
    batches = zip(images.split(256), torch.tensor(groups).split(256), strict=True)
    routings = record(network, batches, tuple(labels)).routings
    weights = {f"convolution {number}": each.class_mean for number, each in enumerate(routings, start=1)}
    return Grouping(name, labels, weights, [np.asarray(data.val.read(index)[0]) for index in examples])
