"""What a set of images is to the rest of the training code."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100
"""Target of an image that could not be read; cross entropy's own `ignore_index`, counted by nobody."""


class Images(Dataset[tuple[Any, int]]):
    """Images with their classes.

    Attributes:
        transform: Applied to each image as it is read; None gives PIL images.
    """

    transform: Callable[[Image.Image], Tensor] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its class, or `IGNORED`."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.read(index)
        return (image if self.transform is None else self.transform(image)), target
