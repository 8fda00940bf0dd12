"""SSD on the features of a network of the zoo."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from condconv.counting import count
from condconv.models import create_model

_EXTRA = (512, 256, 256, 128)
"""Channels of the maps after the network's own, each half as large as the one before."""


class PyramidFeatures(nn.Module):
    """The last two maps of a network and four smaller ones on top.

    Args:
        body: Returns a list of two maps, the second half as large as the first, `[B, C, H, W]`.
        channels: Of the second map.

    Source:
        SSD (arXiv:1512.02325) with MobileNetV1 as in TensorFlow's detection models: each further map is a 1x1
        convolution to half its channels and a 3x3 convolution with stride 2.
    """

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.extra = nn.ModuleList()
        for out_channels in _EXTRA:
            half = out_channels // 2
            self.extra.append(
                nn.Sequential(*_unit(channels, half, 1), *_unit(half, out_channels, 3, stride=2, padding=1))
            )
            channels = out_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return six maps by name, from `[B, 3, S, S]`."""
        maps = list(self.body(x))
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        return OrderedDict((str(index), each) for index, each in enumerate(maps))


def _unit(in_channels: int, out_channels: int, size: int, stride: int = 1, padding: int = 0) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, padding, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True)


def create_detector(name: str, num_classes: int, *, image_size: int = 300, **options: Any) -> SSD:
    """Return torchvision's SSD on a network of the zoo.

    Args:
        name: Network whose last two stages, at strides 16 and 32, are the first maps.
        num_classes: Kinds of objects, the background not counted.
        image_size: Side of the square that images are resized to, in pixels.
        **options: Of `condconv.create_model`.

    Returns:
        A module that takes a list of images `[3, H, W]` in 0 to 1 and, in training, a list of dicts with `boxes`
        `[N, 4]` (left, top, right, bottom in pixels) and `labels` `[N]` from 1; it returns losses in training, else
        dicts with `boxes`, `labels` and `scores`.

    Raises:
        ValueError: No network can be made of the name.

    Source:
        CondConv, Table 2: SSD300 with MobileNetV1 at three widths.
    """
    body: Any = create_model(name, features_only=True, out_indices=(3, 4), **options)
    features = PyramidFeatures(body, body.feature_info.channels()[-1])
    # Aspect ratios 1, 2, 3 and their inverses on every map, scales from 0.2 to 0.95 of the image.
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(2 + len(_EXTRA))], min_ratio=0.2, max_ratio=0.95)
    return SSD(features, anchors, (image_size, image_size), num_classes + 1)


class _Convolutions(nn.Module):
    """The parts of a detector that have multiply-adds: features and heads, without the handling of boxes."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.features, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.features(x).values()))


def detector_costs(detector: SSD, image_size: int) -> tuple[int, int]:
    """Return parameters and multiply-adds for one image.

    Args:
        detector: As `create_detector` returns it.
        image_size: Side of its input in pixels.
    """
    total = count(_Convolutions(detector), torch.zeros(1, 3, image_size, image_size)).total
    return total.params, total.madds
