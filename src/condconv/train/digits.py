"""The handwritten digits that come with scikit-learn: 1797 scans of 8x8 pixels, ten classes, no download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from condconv.errors import require_extra
from condconv.train.images import Images

CLASS_NAMES = tuple(str(digit) for digit in range(10))
MEAN, STD = (0.3053,), (0.3761,)
"""Of all the pixels, on the scale 0 to 1."""


class Digits(Images):
    """One half of the digits; the split is stratified and always the same.

    Half of the images are kept for validation, so that one image is only 0.11 points of accuracy.

    Args:
        split: `"train"` (898 images) or `"val"` (899 images).
        in_chans: 1 gives grey images, 3 the same in colour mode.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    def __init__(self, split: str, *, in_chans: int = 1) -> None:
        digits = require_extra("sklearn.datasets", "train").load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        choose = require_extra("sklearn.model_selection", "train").train_test_split
        halves = choose(np.arange(len(images)), test_size=0.5, random_state=0, stratify=digits.target)
        mode = "L" if in_chans == 1 else "RGB"
        chosen = halves[0 if split == "train" else 1]
        self._images = [Image.fromarray(images[index]).convert(mode) for index in chosen]
        self._targets = [int(digits.target[index]) for index in chosen]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its digit."""
        return self._images[index], self._targets[index]
