"""The images that come with the package's requirements: scikit-learn's digits, plain and under four conditions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from condconv.errors import require_extra

CONDITIONS = ("plain", "inverted", "turned", "noisy")
"""How the digits of `digits-conditions` are seen."""

_SIZE = 16  # of the digits under conditions, so that a small network sees maps of several pixels to its end
_NOISE = 80  # standard deviation, in pixel values of 0 to 255


class DigitsReader:
    """One half of the digits of scikit-learn: 1797 grey scans of 8x8 pixels, ten classes, no download.

    The split is stratified and always the same. Half of the images are kept for validation, so that one image is only
    0.11 points of accuracy.

    Args:
        split: `"train"` (898 images) or `"val"` (899 images).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str) -> None:
        self._samples = list(self._read(split))

    def _read(self, split: str) -> Iterator[tuple[Image.Image, int]]:
        digits = require_extra("sklearn.datasets", "train").load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        choose = require_extra("sklearn.model_selection", "train").train_test_split
        halves = choose(np.arange(len(images)), test_size=0.5, random_state=0, stratify=digits.target)
        for index in halves[0 if split == "train" else 1]:
            yield Image.fromarray(images[index]), int(digits.target[index])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._samples[index]

    def filename(self, index: int) -> str:
        """Return what to call an image in a message."""
        return f"digit {index}"


class ConditionsReader(DigitsReader):
    """The digits, each seen under all of `CONDITIONS`: one task for a network that has to read several kinds of image.

    They are enlarged to 16x16 pixels, then left plain, inverted (dark on white), turned by 90 degrees to the left, or
    covered with noise, which is drawn for each image and always the same. The four views of a digit are next to one
    another, in one half: `index % 4` is the condition. There are four times as many images as digits, 3592 and 3596.
    """

    def _read(self, split: str) -> Iterator[tuple[Image.Image, int]]:
        noise = np.random.default_rng(0 if split == "train" else 1)
        for image, target in super()._read(split):
            plain = np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC))
            noisy = np.clip(plain + noise.normal(0, _NOISE, plain.shape), 0, 255).astype(np.uint8)
            for view in (plain, 255 - plain, np.ascontiguousarray(np.rot90(plain)), noisy):
                yield Image.fromarray(view), target


@dataclass(frozen=True)
class Embedded:
    """Images that need no download.

    Attributes:
        reader: Opens a split.
        size: Side of the images in pixels.
        mean: Of their pixels, on the scale 0 to 1.
        std: Standard deviation of the same pixels.
    """

    reader: type[DigitsReader]
    size: int
    mean: float
    std: float


EMBEDDED = {
    "digits": Embedded(DigitsReader, 8, 0.3053, 0.3761),
    "digits-conditions": Embedded(ConditionsReader, _SIZE, 0.4158, 0.3824),
}
"""By the name that `data` has; `condconv.lab.config.EMBEDDED` has the names."""
