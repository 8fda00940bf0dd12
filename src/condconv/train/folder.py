"""Image folders and tar files: `train` and `val`, one folder a class inside each, checked before the first epoch."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import IO

import numpy as np
from timm.data.readers.img_extensions import add_img_extensions
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils.misc import natural_key
from torchvision.datasets.folder import IMG_EXTENSIONS

from condconv.errors import UsageError
from condconv.train.images import Reader
from condconv.train.tars import class_folders, images, is_image

_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "test")}


class FolderReader:
    """Images of one split in one folder a class, found at any depth below it.

    Args:
        root: Directory with the class folders; hidden folders are not classes.

    Attributes:
        class_names: Names of the class folders, 2 before 10.

    Raises:
        UsageError: There is no class folder, or one has no image.
    """

    def __init__(self, root: Path) -> None:
        self.class_names = _class_folders(root)
        if not self.class_names:
            raise UsageError(
                f"`data` must hold a folder for each class, got {root} without any: put the images of each class "
                "into a folder of its own, or give the directory above"
            )
        self._samples: list[tuple[str, int]] = []
        for target, name in enumerate(self.class_names):
            paths = _find_images(root / name)
            if not paths:
                raise UsageError(
                    f"`data` must have an image in every class folder, got none in {root / name}: "
                    f"fill the folder or remove it, in both splits (image files are {', '.join(IMG_EXTENSIONS)})"
                )
            self._samples += [(path, target) for path in paths]

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
        self._samples = [(path, 0) for path in _find_images(root)]
        if not self._samples:
            raise UsageError(
                f"`data` must hold images or class folders with images, got {root} without: check the path"
            )


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
        try:
            found = sorted(images(path), key=lambda image: natural_key(image[0]))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UsageError(f"`data` must be a whole tar file, got {path} ({error}): make it again") from error
        if not found:
            raise UsageError(
                f"`data` must have images in folders named for their classes, got {path} without any: "
                f"image files are {', '.join(IMG_EXTENSIONS)}"
            )
        folders = class_folders([name for name, _, _ in found])
        self.class_names = tuple(sorted(set(folders), key=natural_key))
        targets = {name: target for target, name in enumerate(self.class_names)}
        rows = [(offset, size, targets[folder]) for (_, offset, size), folder in zip(found, folders, strict=True)]
        self._rows = np.array(rows)  # not lists: ImageNet has a million
        self._path = path

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        offset, size, target = self._rows[index].tolist()
        with self._path.open("rb") as file:  # not one for all worker processes, which would move it under one another
            file.seek(offset)
            return io.BytesIO(file.read(size)), target

    def filename(self, index: int) -> str:
        """Return the path of the tar file and of the image in it."""
        return f"{self._path}/{next(name for name, offset, _ in images(self._path) if offset == self._rows[index, 0])}"


def open_path(path: Path, split: str, *, alone: bool) -> Reader:
    """Open the images of one split at a path.

    Args:
        path: A tar file, or a directory with the split in it (`train/`, `train.tar`, `val/` ...).
        split: `"train"` or `"val"`.
        alone: Whether the path is of this split only; then it may also be the directory of the class folders.

    Raises:
        UsageError: There is nothing of that kind.
    """
    if path.is_file() and alone:
        return _open_tar(path)
    if not path.is_dir():
        raise UsageError(_why_not_directory(path))
    found = find_split(path, split)
    if found is None and not alone:
        listed = ", ".join(sorted(each.name for each in os.scandir(path))[:5]) or "nothing"
        raise UsageError(
            f"`data` must hold train/ and val/ (also called validation/ or test/), or train.tar and val.tar, got "
            f"{path} with no {split}/ (it holds {listed}): sort the images into these two folders, one folder a "
            "class in each, or give the validation images by --val-data"
        )
    found = found or path
    return _open_tar(found) if found.is_file() else FolderReader(found)


def _why_not_directory(path: Path) -> str:
    if path.is_file():
        return f"`val_data` must be given when `data` is a tar file, got {path} alone: give --val-data"
    return (
        f"`data` must be a directory, a tar file or a named dataset, got {path}, which does not exist: check the path "
        "(named are digits, torch/NAME, hfds/NAME and wds/DIRECTORY)"
    )


def _open_tar(path: Path) -> Reader:
    if path.suffix != ".tar":
        raise UsageError(
            f"`data` must be a directory or a .tar file, got {path}: unpack it, or make a .tar that is not compressed"
        )
    return TarReader(path)


def find_split(root: Path, split: str) -> Path | None:
    """Return the directory or else the tar file of `"train"` or `"val"` in `root`, or None if there is none."""
    folders = [root / name for name in _SPLITS[split] if (root / name).is_dir()]
    tars = [root / f"{name}.tar" for name in _SPLITS[split] if (root / f"{name}.tar").is_file()]
    return next(iter([*folders, *tars]), None)


def _class_folders(root: Path) -> tuple[str, ...]:
    names = [each.name for each in os.scandir(root) if each.is_dir() and not each.name.startswith(".")]
    return tuple(sorted(names, key=natural_key))


def _find_images(root: Path) -> list[str]:
    add_img_extensions(IMG_EXTENSIONS)  # timm alone would leave out bmp, tif and webp without a word
    return [path for path, _ in find_images_and_targets(str(root))[0] if is_image(Path(path).name)]
