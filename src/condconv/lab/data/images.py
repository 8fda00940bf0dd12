"""Images with their classes, opened on demand and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from condconv.errors import UsageError, shown_name
from condconv.lab.data.contents import UNREADABLE, check_sides, open_image
from condconv.lab.data.workers import shortages_explained

IGNORED = -100
"""Target of an image that could not be read; cross entropy's own `ignore_index`, never counted."""


_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Images of one split as they are stored.

    Attributes:
        class_names: Names in the order of the classes that `reader[index]` gives.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[IO[bytes] | Image.Image, int]: ...

    def filename(self, index: int) -> str:
        """Return what to call an image in a message."""
        ...


class Images(Dataset[tuple[Any, int]]):
    """Images with their classes, read on demand. An unreadable one is an error, or skipped and counted.

    Args:
        reader: Where the images come from.
        class_names: The same names as the reader's, in the order of the targets.
        in_chans: 1 makes grey images, 3 colour.
        scaled_to: Pixels that `transform` scales the shorter side to; images that this makes too large cannot be read.
        skip_unreadable: Whether an unreadable image is left out, with a warning in the log that names it once a
            process; otherwise it is an error.

    Attributes:
        class_names: In the order of the targets.
        transform: Applied to each image as it is read; None gives PIL images.
    """

    transform: Callable[[Image.Image], Tensor] | None = None

    def __init__(
        self,
        reader: Reader,
        class_names: Sequence[str],
        *,
        in_chans: int,
        scaled_to: int = 1,
        skip_unreadable: bool = False,
    ) -> None:
        self.class_names = tuple(class_names)
        self._reader = reader
        targets = {name: target for target, name in enumerate(self.class_names)}
        self._targets = [targets[name] for name in reader.class_names]
        self._mode = "L" if in_chans == 1 else "RGB"
        self.scaled_to = scaled_to
        self._skip = skip_unreadable
        self._kept: list[tuple[np.ndarray[Any, Any], int]] = []
        self._named = torch.zeros(len(reader), dtype=torch.bool).share_memory_()  # with the workers of all epochs

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self._kept:
            pixels, target = self._kept[index]
            image = Image.fromarray(pixels)
        else:
            image, target = self.read(index)
        return (image if self.transform is None else self.transform(image)), target

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its class, or a stand-in and `IGNORED`.

        Raises:
            UsageError: The image cannot be read and is not to be left out; or none can.
            ShortageError: There is too little memory, or too few file handles, to read it.
        """
        try:
            return self._read(index)
        except UsageError:
            raise
        except UNREADABLE as error:
            if not self._skip:
                raise UsageError(
                    f"`data` must hold readable images, got {shown_name(self.filename(index))} ({_one_line(error)}): "
                    "replace the file, or pass --on-bad-image skip to leave such files out and count them"
                ) from error
            if not self._named[index]:
                self._named[index] = True
                _log.warning("left out, unreadable: %s (%s)", shown_name(self.filename(index)), _one_line(error))
            return self._stand_in(index), IGNORED

    def keep_in_memory(self, most: float) -> int:
        """Read all images once, and keep their pixels in memory; returns the bytes that they take.

        Small images take longer to decode than to train on.

        Raises:
            UsageError: They take more than `most` bytes, or an image cannot be read.
        """
        kept, taken = [], 0
        for index in range(len(self)):
            image, target = self.read(index)
            pixels = np.asarray(image)
            taken += pixels.nbytes
            if taken > most:
                raise UsageError(
                    f"`cache_images` must be enough for all decoded images, got room for {index} of {len(self)}: give "
                    "more GiB, or leave it out to read each image in each epoch"
                )
            kept.append((pixels, target))
        self._kept = kept
        return taken

    def filename(self, index: int) -> str:
        """Return what an image is called where it is stored."""
        return self._reader.filename(index)

    def _read(self, index: int) -> tuple[Image.Image, int]:
        with shortages_explained():  # for which no image is to blame, nor may be left out
            stored, label = self._reader[index]
            if isinstance(stored, Image.Image):
                check_sides(stored.size, self.scaled_to)
                image = in_mode(stored, self._mode)
            else:
                with stored, open_image(stored) as opened:
                    check_sides(opened.size, self.scaled_to)
                    image = in_mode(opened, self._mode)
        if not 0 <= label < len(self._targets):
            raise UsageError(
                f"`data` must have a class for each image, got {label} for "
                f"{shown_name(self.filename(index))}: take a split that is labelled"
            )
        return image, self._targets[label]

    def _stand_in(self, index: int) -> Image.Image:
        """The next readable image: batch statistics see a real picture, and its target counts nowhere."""
        for step in range(1, len(self)):
            try:
                return self._read((index + step) % len(self))[0]
            except UNREADABLE:
                continue
        raise UsageError("`data` must hold readable images, got none that can be read: look at one in an image viewer")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a PIL image in mode `"L"` or `"RGB"`, 8 bits per channel; it is loaded.

    Pillow clips images of 16 bits at 255, which leaves them white; here their upper 8 bits are kept. Images of
    32 bits are taken as 16, which is how Pillow opens some files of that depth.

    Raises:
        ValueError: The pixels are floating point numbers, whose range the file does not say.
    """
    if image.mode == "F":
        raise ValueError("floating point pixels have no known range")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((pixels.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _one_line(error: Exception) -> str:
    # Pillow repeats the path, which the message has already.
    text = " ".join(str(error).split(" '")[0].split(" <")[0].split())
    return shown_name(text.rstrip(":.")) or type(error).__name__
