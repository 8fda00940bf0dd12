"""Small image folders and networks for the tests of training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from condconv.lab.config import TrainConfig


def make_folder(root: Path, classes=("cat", "dog"), train=6, val=3, size=12) -> Path:
    """Writes an image folder of noise, each class around a grey level of its own."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for level, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(80 * level, 80 * level + 80, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


class StopAt(nn.Module):
    """Passes its input on, and raises at one training step, counted from 1; None never stops."""

    def __init__(self, step: int | None, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = step, error

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise self.error
        return x


class NanAt(StopAt):
    """Passes its input on, and makes it NaN at one training step."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except RuntimeError:
            return x * float("nan")


def small_network(num_classes: int, in_chans: int, first: nn.Module | None = None) -> nn.Sequential:
    """A network with batch statistics and dropout, which resuming has to get right."""
    return nn.Sequential(
        nn.Identity() if first is None else first,
        nn.Conv2d(in_chans, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, num_classes),
    )


def build(config: TrainConfig, num_classes: int, in_chans: int) -> nn.Module:
    return small_network(num_classes, in_chans)


def build_with(first: nn.Module):
    return lambda config, num_classes, in_chans: small_network(num_classes, in_chans, first)


def settings(out: Path, **changes) -> TrainConfig:
    values: dict[str, Any] = {
        "data": "digits",
        "model": "small",
        "out": str(out),
        "epochs": 4,
        "batch_size": 128,
        "device": "cpu",
    }
    return TrainConfig(**(values | changes))


def same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
