"""Image folders: `train/` and `val/`, one folder a class, checked before the first epoch."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils.misc import natural_key

from condconv.errors import UsageError
from condconv.train.images import IGNORED, Images

_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "test")}
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class ImageFolder(Images):
    """Images of one split, read when asked for.

    Args:
        root: Directory with one folder a class; images are found at any depth below it.
        class_names: Folder names in the order of the targets.
        in_chans: 1 reads grey images, 3 colour.
        skip_unreadable: Whether an unreadable image is left out; otherwise it is an error.

    Raises:
        UsageError: A class has no image.
    """

    def __init__(self, root: Path, class_names: tuple[str, ...], *, in_chans: int, skip_unreadable: bool) -> None:
        self.samples: list[tuple[str, int]] = []
        for target, name in enumerate(class_names):
            images, _ = find_images_and_targets(str(root / name))
            if not images:
                raise UsageError(
                    f"`data` must have an image in every class folder, got none in {root / name}: "
                    "fill the folder or remove it, in both splits"
                )
            self.samples += [(path, target) for path, _ in images]
        self._mode = "L" if in_chans == 1 else "RGB"
        self._skip = skip_unreadable

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its class, or a stand-in and `IGNORED`."""
        path, target = self.samples[index]
        try:
            image = self._read(path)
        except _UNREADABLE as error:
            if not self._skip:
                raise UsageError(
                    f"`data` must hold readable images, got {path} ({_one_line(error)}): "
                    "remove the file, or pass --on-bad-image skip to leave such files out and count them"
                ) from error
            image, target = self._stand_in(index), IGNORED
        return image, target

    def _read(self, path: str) -> Image.Image:
        with Image.open(path) as image:
            return image.convert(self._mode)

    def _stand_in(self, index: int) -> Image.Image:
        """The next readable image: batch statistics see a real picture, and its target counts nowhere."""
        for step in range(1, len(self.samples)):
            try:
                return self._read(self.samples[(index + step) % len(self.samples)][0])
            except _UNREADABLE:
                continue
        raise UsageError("`data` must hold readable images, got none that can be read: look at one in an image viewer")


def _one_line(error: Exception) -> str:
    # Pillow repeats the path, which the message has already.
    return " ".join(str(error).split(" '")[0].split()) or type(error).__name__


def find_split(root: Path, split: str) -> Path | None:
    """Return the directory of `"train"` or `"val"` below `root`, or None if there is none."""
    return next((root / name for name in _SPLITS[split] if (root / name).is_dir()), None)


def split_directories(root: Path) -> tuple[Path, Path]:
    """Return the training and the validation directory.

    Raises:
        UsageError: The path is no directory, or lacks one of the two.
    """
    if not root.is_dir():
        raise UsageError(
            f"`data` must be a directory or 'digits', got {root}, "
            f"{'which is a file' if root.exists() else 'which does not exist'}: check the path"
        )
    train, val = find_split(root, "train"), find_split(root, "val")
    if train is None or val is None:
        lacking = " and ".join(
            f"no {names[0]}/" for names, at in zip(_SPLITS.values(), (train, val), strict=True) if not at
        )
        found = ", ".join(sorted(each.name for each in os.scandir(root))[:5]) or "nothing"
        raise UsageError(
            f"`data` must hold train/ and val/ (also called validation/ or test/), got {root} with {lacking} "
            f"(it holds {found}): sort the images into these two folders, one folder a class in each"
        )
    return train, val


def class_folders(root: Path) -> tuple[str, ...]:
    """Return the names of the class folders, 2 before 10; hidden folders are not classes."""
    names = [each.name for each in os.scandir(root) if each.is_dir() and not each.name.startswith(".")]
    return tuple(sorted(names, key=natural_key))


def shared_classes(train: Path, val: Path) -> tuple[str, ...]:
    """Return the class names of a dataset.

    Raises:
        UsageError: The two splits have different classes, or there are fewer than two.
    """
    names, others = class_folders(train), class_folders(val)
    if set(names) != set(others):
        only = [
            f"only {split.name}/ has {', '.join(sorted(extra)[:5])}{' ...' if len(extra) > 5 else ''}"
            for split, extra in ((train, set(names) - set(others)), (val, set(others) - set(names)))
            if extra
        ]
        raise UsageError(
            f"`data` must have the same class folders in {train.name}/ and {val.name}/, got {train.parent} "
            f"where "
            f"{' and '.join(only)}: add the missing folders or remove the others"
        )
    if len(names) < 2:
        raise UsageError(
            f"`data` must have at least two class folders, got {len(names)} in {train}"
            f"{f' ({names[0]})' if names else ''}: put the images of each class into a folder of its own"
        )
    return names
