"""Image folders and tar files: `train` and `val`, one folder per class inside each, checked before the first epoch."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from condconv.errors import UsageError, few, shown_name
from condconv.files.paths import check_path
from condconv.lab.data.contents import REPLACED, SUFFIXES, check_class_names, log_left_out, natural_order, read_part
from condconv.lab.data.images import Reader
from condconv.lab.data.tars import class_folders_of, images
from condconv.lab.data.walking import class_folders, images_below

_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "test")}


class FolderReader:
    """Images of one split in one folder per class, found at any depth below it.

    Args:
        root: Directory with the class folders; hidden folders are not classes.

    Attributes:
        class_names: Names of the class folders, 2 before 10.

    Raises:
        UsageError: There is no class folder, or one has no image.
    """

    def __init__(self, root: Path) -> None:
        left_out: Counter[str] = Counter()
        folders = class_folders(root, left_out)
        self.class_names = check_class_names(folders, root)
        if not folders:
            raise UsageError(
                f"`data` must hold a folder for each class, got {shown_name(root)} without any: put the images of each "
                "class into a folder of its own, or give the directory above"
            )
        self._samples: list[tuple[str, int]] = []
        for target, name in enumerate(folders):
            paths = images_below(root / name, left_out)
            if not paths:
                raise UsageError(
                    f"`data` must have an image in every class folder, got none in {shown_name(root / name)}: "
                    f"fill the folder or remove it, in both splits (image files are {', '.join(SUFFIXES)})"
                )
            self._samples += [(path, target) for path in paths]
        log_left_out(left_out, root)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, target = self._samples[index]
        return Path(path).open("rb"), target

    def filename(self, index: int) -> str:
        """Return the path of an image."""
        return self._samples[index][0]


class LooseReader(FolderReader):
    """Images of a directory without class folders; all have class 0.

    Args:
        root: The directory.

    Raises:
        UsageError: It has no image.
    """

    def __init__(self, root: Path) -> None:
        self.class_names = ("",)
        left_out: Counter[str] = Counter()
        self._samples = [(path, 0) for path in images_below(root, left_out)]
        if not self._samples:
            raise UsageError(
                f"`data` must hold images or class folders with images, got {shown_name(root)} without: check the path"
            )
        log_left_out(left_out, root)


class TarReader:
    """Images of one split in a tar file, at any depth below their class folders.

    Args:
        path: A `.tar` that is not compressed, or one of such tars, one a class, as ImageNet is packed.

    Attributes:
        class_names: Names of the folders, or tars, that have images, 2 before 10.

    Raises:
        UsageError: The file cannot be read as a tar, or has no images.
    """

    def __init__(self, path: Path) -> None:
        left_out: Counter[str] = Counter()
        found = sorted(_images_of(path, left_out), key=lambda image: natural_order(image[0]))
        if not found:
            raise UsageError(
                f"`data` must have images in folders named for their classes, got {shown_name(path)} without any: "
                f"image files are {', '.join(SUFFIXES)}"
            )
        last = [image for image, after in pairwise((*found, ("", 0, 0))) if image[0] != after[0]]
        left_out[REPLACED] += len(found) - len(last)
        folders = class_folders_of([name for name, _, _ in last])
        names = sorted(set(folders), key=natural_order)
        if "" in names:
            outside = [name for (name, _, _), folder in zip(last, folders, strict=True) if not folder]
            raise UsageError(
                f"`data` must have each image in a folder named for its class, got {few(outside)} in "
                f"{shown_name(path)} in none: pack the class folders"
            )
        self.class_names = check_class_names(names, path)
        targets = {name: target for target, name in enumerate(names)}
        rows = [(offset, size, targets[folder]) for (_, offset, size), folder in zip(last, folders, strict=True)]
        self._rows = np.array(rows)  # not lists: ImageNet has a million
        self._path = path
        log_left_out(left_out, path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        offset, size, target = self._rows[index].tolist()
        return read_part(self._path, offset, size), target

    def filename(self, index: int) -> str:
        """Return the path of the tar file and of the image in it."""
        return f"{self._path}/{self._names[int(self._rows[index, 0])]}"

    @cached_property
    def _names(self) -> dict[int, str]:
        """Names by offset; read again once, at the first use, since they would take memory in each worker."""
        return {offset: name for name, offset, _ in images(self._path, Counter())}


def _images_of(path: Path, left_out: Counter[str]) -> list[tuple[str, int, int]]:
    try:
        return [*images(path, left_out)]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(
            f"`data` must be a whole tar file, got {shown_name(path)} ({shown_name(error)}): make it again"
        ) from error


def open_path(path: Path, split: str, *, alone: bool) -> Reader:
    """Open the images of one split at a path.

    Args:
        path: A tar file, or a directory with the split in it (`train/`, `train.tar`, `val/` ...).
        split: `"train"` or `"val"`.
        alone: Whether the path is of this split only; then it may also be the directory of the class folders.

    Raises:
        UsageError: There is nothing of that kind.
    """
    check_path(path, "data")
    if path.is_file() and alone:
        return _open_tar(path)
    if not path.is_dir():
        raise UsageError(_why_not_directory(path))
    found = find_split(path, split)
    if found is None and not alone:
        listed = ", ".join(map(shown_name, sorted(each.name for each in os.scandir(path))[:5])) or "nothing"
        raise UsageError(
            f"`data` must hold train/ and val/ (also called validation/ or test/), or train.tar and val.tar, got "
            f"{shown_name(path)} with no {split}/ (it holds {listed}): sort the images into these two folders, one "
            "folder per class in each, or give the validation images by --val-data"
        )
    found = found or path
    return _open_tar(found) if found.is_file() else FolderReader(found)


def _why_not_directory(path: Path) -> str:
    if path.is_file():
        return f"`val_data` must be given when `data` is a tar file, got {shown_name(path)} alone: give --val-data"
    wrong = "is none of these" if path.exists() else "does not exist"
    return (
        f"`data` must be a directory, a tar file or a named dataset, got {shown_name(path)}, which {wrong}: "
        "check the path (named are digits, digits-conditions, torch/NAME, hfds/NAME and wds/DIRECTORY)"
    )


def _open_tar(path: Path) -> Reader:
    if path.suffix != ".tar":
        raise UsageError(
            f"`data` must be a directory or a .tar file, got {shown_name(path)}: unpack it, or make a .tar that is "
            "not compressed"
        )
    return TarReader(path)


def find_split(root: Path, split: str) -> Path | None:
    """Return the directory or else the tar file of `"train"` or `"val"` in `root`, or None if there is none."""
    folders = [root / name for name in _SPLITS[split] if (root / name).is_dir()]
    tars = [root / f"{name}.tar" for name in _SPLITS[split] if (root / f"{name}.tar").is_file()]
    return next(iter([*folders, *tars]), None)
