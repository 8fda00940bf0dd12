"""Datasets by name: torchvision's (`torch/NAME`) and Hugging Face's (`hfds/NAME`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from PIL import Image

from condconv.errors import MissingExtraError, UsageError, first_line, require_extra, shown_name
from condconv.lab.data.contents import open_image

_TOO_LARGE = ("places365", "inaturalist", "inat")
_HF_VALIDATION = ("validation", "val", "valid", "test")


class TorchReader:
    """One of torchvision's datasets, through timm, downloaded into `root` if it is missing.

    Args:
        name: As timm calls it: `cifar10`, `cifar100`, `mnist`, `fashion_mnist`, `imagenet` and others.
        split: `"train"` or `"val"`.
        root: Directory of the files.
        options: Further arguments of torchvision's class.

    Raises:
        UsageError: The name is unknown, or the files are not there and cannot be fetched.
    """

    def __init__(self, name: str, split: str, root: str, options: Mapping[str, Any]) -> None:
        if name in ("folder", "image_folder"):
            raise UsageError(f"`data` must be a directory itself, got torch/{name}: give {shown_name(root)}")
        factory = require_extra("timm.data.dataset_factory", "train")
        download = name not in _TOO_LARGE  # torchvision fetches only what is not there
        try:
            self._dataset: Any = factory.create_dataset(
                f"torch/{name}", root=root, split=split, download=download, **options
            )
        except AssertionError as error:
            raise UsageError(
                f"`data` must name a dataset of torchvision's that timm knows, got torch/{shown_name(name)} ({error}): "
                "torch/cifar10, torch/cifar100 and torch/imagenet are some"
            ) from error
        except (OSError, RuntimeError, TypeError) as error:
            raise UsageError(
                f"`data` must be in --data-dir or within reach, got torch/{shown_name(name)} in {shown_name(root)} "
                f"({first_line(error)}): put its files there"
            ) from error
        if hasattr(self._dataset, "loader"):
            self._dataset.loader = _load  # in place of one that opens what Pillow knows, and starts programs for some
        kinds = ("wnids", "classes", "all_categories")  # the last of torchvision's INaturalist
        names = next(getattr(self._dataset, each) for each in kinds if hasattr(self._dataset, each))
        self.class_names = tuple(map(str, names))
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, target = self._dataset[index]
        return image, int(target)

    def filename(self, index: int) -> str:
        """Return what to call an image in a message."""
        return f"image {index} of torch/{self._name}"


def _load(path: str) -> Image.Image:
    with open_image(Path(path)) as image:
        return image.convert("RGB")


class HuggingFaceReader:
    """A dataset of the Hugging Face hub, or one in its formats on the disk, through timm's reader.

    Args:
        name: On the hub, or a directory.
        split: `"train"` or `"val"`; the latter is what the dataset calls validation, val, valid or test.
        root: Directory of its cache; None for the usual one.
        options: Arguments of timm's reader, such as `input_key` and `target_key`; and `train_split`, `val_split`.

    Raises:
        UsageError: The dataset, the split or a column is not there.
        MissingExtraError: datasets is not installed.
    """

    def __init__(self, name: str, split: str, root: str | None, options: Mapping[str, Any]) -> None:
        datasets = require_extra("datasets", "datasets")
        options = dict(options)
        asked = {each: options.pop(f"{each}_split", None) for each in ("train", "val")}
        create_reader = require_extra("timm.data.readers", "train").create_reader
        try:
            found = asked[split] or _split_name(datasets.get_dataset_split_names(name), split)
            self._reader: Any = create_reader(f"hfds/{name}", root=root, split=found, **options)
        except MissingExtraError:
            raise
        except Exception as error:  # of its parsers, and of what lies behind a DatasetGenerationError
            raise UsageError(
                f"`data` must be a dataset with images and classes, got hfds/{shown_name(name)} "
                f"({first_line(_cause(error))}): name the split and columns by --data-option "
                "val_split=..., input_key=... and target_key=..."
            ) from error
        reader = self._reader
        # A column that is not there comes as one of nothing.
        if not len(reader) or reader.dataset[0][reader.image_key] is None or not reader.class_to_idx:
            raise UsageError(
                f"`data` must have the images in the column {reader.image_key!r} and a ClassLabel in the column "
                f"{reader.label_key!r}, got hfds/{shown_name(name)} with {reader.dataset.features}: name the columns "
                "by --data-option input_key=... and target_key=..."
            )
        names: Mapping[str, int] = reader.class_to_idx
        self.class_names = tuple(sorted(names, key=names.__getitem__))
        self._place = f"hfds/{name} ({found})"

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        file, target = self._reader[index]
        return file, int(target)

    def filename(self, index: int) -> str:
        """Return what to call an image in a message."""
        return f"image {index} of {self._place}"


def _cause(error: Exception) -> Exception:
    """Return the error that datasets wraps in one that says nothing, or the error itself."""
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
    return cause if isinstance(cause, Exception) else error


def _split_name(names: list[str], split: str) -> str:
    wanted = ("train",) if split == "train" else _HF_VALIDATION
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise ValueError(f"no split {' or '.join(wanted)}, only {', '.join(names)}")
    return found
