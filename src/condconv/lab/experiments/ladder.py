"""Steps from several networks to experts in every layer, each as wide as the same multiply-adds allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from condconv.counting import count
from condconv.lab.config import TrainConfig
from condconv.lab.data.image_data import open_data
from condconv.lab.experiments.branches import BRANCHES, create_branches
from condconv.lab.experiments.design import Arm
from condconv.lab.saved.network import default_options
from condconv.models import create_model


class Size(NamedTuple):
    """Sizes on which the multiply-adds of a network depend, besides its width.

    Attributes:
        image_size: Side of the square input in pixels.
        output_stride: Image size over that of the last feature map.
        num_classes: Outputs of the classifier.
    """

    image_size: int
    output_stride: int
    num_classes: int


IMAGENET = Size(224, 32, 1000)


def size_of(settings: TrainConfig) -> Size:
    """Return the size of the networks of a run: that of its images, and the classes of its data.

    Raises:
        UsageError: The data cannot be used.
    """
    data = open_data(replace(settings, cache_images=0.0))
    image_size = data.preprocessing.size
    options: dict[str, Any] = default_options(replace(settings, model="mobilenet_v1_100"), image_size)
    return Size(image_size, options.get("output_stride", 32), len(data.class_names))


def arms(network: str, number: int, size: Size = IMAGENET) -> tuple[Arm, ...]:
    """Return the rows of the comparison.

    Args:
        network: Name of the static MobileNetV1 that sets the cost.
        number: K, of networks, branches or experts.
        size: Of the images for which multiply-adds are counted; the share of the last stage depends on it.
    """
    target = _madds(network, (), size)

    def static(each: int) -> str:
        return f"mobilenet_v1_{each:03d}"

    single = static(_width(static, {}, target // number, size))
    rows = [
        Arm("one network", network),
        Arm(f"{number} networks", single, members=number),
        Arm(f"{number} snapshots of one run", single, members=number, chained=True),
    ]
    for label, stages, weighted in (
        (f"{number} branches in the last stage", "last", False),
        ("the same, weighted by the input", "last", True),
        ("the same in every stage", "all", True),
    ):
        options = {"branches": number, "stages": stages, "weighted": weighted}
        rows.append(Arm(label, BRANCHES, {"base": static(_width(static, options, target, size)), **options}))

    def conditional(each: int) -> str:
        return f"mobilenet_v1_cc_{each:03d}_{number}e"

    every = {"first_layer": 1}
    name = conditional(_width(conditional, every, target, size))
    return (*rows, Arm(f"{number} experts in every layer", name, every))


def _width(name: Callable[[int], str], options: Mapping[str, Any], target: int, size: Size) -> int:
    """Return the width in percent whose multiply-adds come nearest to a target, the narrowest of equals."""
    key = tuple(sorted(options.items()))
    low, high = 1, 100
    if _madds(name(low), key, size) >= target:
        return low
    while _madds(name(high), key, size) < target:
        high *= 2
    while high - low > 1:
        # Multiply-adds grow nearly with the square of the width: interpolation needs fewer counts than bisection.
        below, above = (math.sqrt(_madds(name(each), key, size)) for each in (low, high))
        share = (math.sqrt(target) - below) / (above - below)
        middle = min(max(low + round((high - low) * share), low + 1), high - 1)
        low, high = (middle, high) if _madds(name(middle), key, size) < target else (low, middle)
    return min((low, high), key=lambda each: abs(_madds(name(each), key, size) - target))


@cache
def _madds(name: str, options: tuple[tuple[str, Any], ...], size: Size) -> int:
    given: dict[str, Any] = {"output_stride": size.output_stride, "num_classes": size.num_classes, **dict(options)}
    with torch.device("meta"):
        network: nn.Module = create_branches(name, **given) if "branches" in given else create_model(name, **given)
    return count(network.eval(), torch.zeros(1, 3, size.image_size, size.image_size, device="meta")).total.madds
