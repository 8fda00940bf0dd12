"""The handwritten digits that come with scikit-learn: 1797 scans of 8x8 pixels, ten classes, no download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from condconv.errors import require_extra

MEAN, STD = (0.3053,), (0.3761,)
"""Of all the pixels, on the scale 0 to 1."""


class DigitsReader:
    """One half of the digits, as grey images; the split is stratified and always the same.

    Half of the images are kept for validation, so that one image is only 0.11 points of accuracy.

    Args:
        split: `"train"` (898 images) or `"val"` (899 images).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str) -> None:
        digits = require_extra("sklearn.datasets", "train").load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        choose = require_extra("sklearn.model_selection", "train").train_test_split
        halves = choose(np.arange(len(images)), test_size=0.5, random_state=0, stratify=digits.target)
        chosen = halves[0 if split == "train" else 1]
        self._samples = [(Image.fromarray(images[index]), int(digits.target[index])) for index in chosen]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._samples[index]

    def filename(self, index: int) -> str:
        """Return what to call an image in a message."""
        return f"digit {index}"
