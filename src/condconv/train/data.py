"""Images for training and evaluation: an image folder or the embedded digits, through timm's transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from torch import Tensor

from condconv.errors import UsageError
from condconv.train import digits, folder
from condconv.train.config import TrainConfig
from condconv.train.images import Images


@dataclass(frozen=True)
class ImageData:
    """Both splits of a dataset, transformed and ready for a loader.

    Attributes:
        train: Training images as `[C, S, S]` float32 with their class.
        val: Validation images, the same way.
        class_names: In the order of the targets.
        image_size: S, in pixels.
        in_chans: C.
    """

    train: Images
    val: Images
    class_names: tuple[str, ...]
    image_size: int
    in_chans: int


def open_data(config: TrainConfig) -> ImageData:
    """Open the training and validation images that a run asks for.

    Raises:
        UsageError: The folder is missing or wrongly laid out, the splits have different classes, a class is
            empty, or there are fewer training images than one update takes.
    """
    is_digits = config.data == "digits"
    size = config.image_size or (8 if is_digits else 224)
    in_chans = config.in_chans or (1 if is_digits else 3)
    if config.auto_augment and in_chans == 1:
        raise UsageError(f"`auto_augment` must be None with one image channel, got {config.auto_augment!r}: drop it")
    train: Images
    val: Images
    if is_digits:
        names = digits.CLASS_NAMES
        train, val = (digits.Digits(split, in_chans=in_chans) for split in ("train", "val"))
    else:
        roots = folder.split_directories(Path(config.data))
        names = folder.shared_classes(*roots)
        skip = config.on_bad_image == "skip"
        train, val = (folder.ImageFolder(root, names, in_chans=in_chans, skip_unreadable=skip) for root in roots)
    if config.batch_size > len(train):
        raise UsageError(
            f"`batch_size` must be at most the number of training images ({len(train)}), got "
            f"{config.batch_size}: lower it"
        )
    train.transform = _train_transform(config, size, in_chans)
    val.transform = _val_transform(size, in_chans, is_digits=is_digits)
    return ImageData(train, val, names, size, in_chans)


def open_validation(data: str, class_names: tuple[str, ...], *, size: int, in_chans: int, skip: bool) -> Images:
    """Open the images to evaluate a trained network on.

    Args:
        data: `"digits"`, a directory with `val/` (also `validation/`, `test/`), or one with the
            class folders.
        class_names: The network's classes; the data has to have exactly these.
        size: Side of the square input in pixels.
        in_chans: Image channels, 1 or 3.
        skip: Whether unreadable images are left out and counted.

    Raises:
        UsageError: The directory is missing, or its classes are not the network's.
    """
    if data == "digits":
        names = digits.CLASS_NAMES
    else:
        root = Path(data)
        if not root.is_dir():
            raise UsageError(f"`data` must be a directory or 'digits', got {data}, which is none: check the path")
        root = folder.find_split(root, "val") or root
        names = folder.class_folders(root)
    if set(names) != set(class_names):
        raise UsageError(
            f"`data` must have the classes that the network was trained on ({_some(class_names)}), "
            f"got {data} with {_some(names)}: give data of the same classes, in folders of the same names"
        )
    images: Images
    if data == "digits":
        images = digits.Digits("val", in_chans=in_chans)
    else:
        images = folder.ImageFolder(root, class_names, in_chans=in_chans, skip_unreadable=skip)
    images.transform = _val_transform(size, in_chans, is_digits=data == "digits")
    return images


def _some(names: tuple[str, ...], most: int = 4) -> str:
    return f"{len(names)}: " + ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _mean_and_std(in_chans: int, is_digits: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if is_digits:
        return digits.MEAN * in_chans, digits.STD * in_chans
    if in_chans == 1:
        return (0.5,), (0.5,)
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def _train_transform(config: TrainConfig, size: int, in_chans: int) -> Callable[[Any], Tensor]:
    is_digits = config.data == "digits"
    min_crop = config.min_crop if config.min_crop is not None else (1.0 if is_digits else 0.25)
    hflip = config.hflip if config.hflip is not None else (0.0 if is_digits else 0.5)
    options = (config.color_jitter, config.auto_augment, config.random_erasing, hflip, min_crop < 1)
    mean, std = _mean_and_std(in_chans, is_digits)
    transform: Callable[[Any], Tensor] = create_transform(
        (in_chans, size, size),
        is_training=True,
        no_aug=not any(options),
        scale=(min_crop, 1.0),
        ratio=(3 / 4, 4 / 3) if min_crop < 1 else (1.0, 1.0),
        hflip=hflip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        re_prob=config.random_erasing,
        interpolation="bicubic",
        mean=mean,
        std=std,
    )
    return transform


def _val_transform(size: int, in_chans: int, *, is_digits: bool) -> Callable[[Any], Tensor]:
    # Cutting the margin away helps with photographs; small images are mostly cropped to the thing already.
    crop = 0.875 if size >= 128 else 1.0
    mean, std = _mean_and_std(in_chans, is_digits)
    transform: Callable[[Any], Tensor] = create_transform(
        (in_chans, size, size), crop_pct=crop, interpolation="bicubic", mean=mean, std=std
    )
    return transform
