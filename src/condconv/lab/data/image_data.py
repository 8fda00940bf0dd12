"""Images for training and evaluation, by path or by name, through timm's transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from condconv.errors import UsageError, few, shown, shown_name
from condconv.files.paths import check_path
from condconv.lab.config import TrainConfig, takes_options
from condconv.lab.data.contents import check_class_names
from condconv.lab.data.digits import EMBEDDED
from condconv.lab.data.folder import open_path
from condconv.lab.data.images import Images, Reader
from condconv.lab.data.named import HuggingFaceReader, TorchReader
from condconv.lab.data.preprocessing import Preprocessing, resolve
from condconv.lab.data.shards import ShardReader


@dataclass(frozen=True)
class ImageData:
    """Both splits of a dataset, transformed and ready for a loader.

    Attributes:
        train: Training images as `[C, S, S]` float32 with their class.
        val: Validation images, the same way.
        class_names: In the order of the targets.
        preprocessing: What the validation images go through; training has the same size, channels and normalization.
    """

    train: Images
    val: Images
    class_names: tuple[str, ...]
    preprocessing: Preprocessing


def open_data(config: TrainConfig, preprocessing: Preprocessing | None = None) -> ImageData:
    """Open the training and validation images of a run.

    Args:
        config: The run.
        preprocessing: That of the run's checkpoint; `None` for a new run, which resolves it from the settings.

    Raises:
        UsageError: The data is missing or wrongly laid out, the splits have different classes, a class is
            empty, or there are fewer training images than one update takes.
        MissingExtraError: The dataset needs a package that is not installed.
    """
    preprocessing = preprocessing or resolve(config)
    in_chans = preprocessing.channels
    if config.auto_augment and in_chans == 1:
        raise UsageError(
            f"`auto_augment` must be None with one image channel, got {shown(config.auto_augment)}: leave it out"
        )
    readers = {}
    for split in ("train", "val"):
        data = config.data_of(split)
        alone = config.val_data is not None
        readers[split] = _open_reader(data, split, alone=alone, **config.reader_options(data))
    names = _shared_classes(config.data, readers)
    skip = config.on_bad_image == "skip"
    train, val = (prepared_images(each, names, preprocessing, skip=skip) for each in readers.values())
    if config.batch_size > len(train):
        raise UsageError(
            f"`batch_size` must be at most the number of training images ({len(train)}), got "
            f"{config.batch_size}: lower it"
        )
    train.transform = train_transform(config, preprocessing)
    if config.cache_images:
        most = config.cache_images * 2**30
        val.keep_in_memory(most - train.keep_in_memory(most))
    return ImageData(train, val, names, preprocessing)


def open_trained(
    data: str,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    split: str = "val",
    skip: bool,
    data_dir: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Images:
    """Open images as a trained network takes them, without augmentation.

    Args:
        data: A directory with `val/` (also `validation/`, `test/`, or a `.tar` of these names), or one with the
            class folders; a tar file; or a named dataset, as for training.
        class_names: The network's classes; the data has to have exactly these.
        preprocessing: The network's, from training.
        split: `"val"`, or `"train"` for the images of `train/`.
        skip: Whether unreadable images are left out and counted.
        data_dir: Where a named dataset's files are.
        options: Options of a named dataset.

    Raises:
        UsageError: The data is missing, or its classes are not the network's.
    """
    reader = _open_reader(data, split, alone=True, data_dir=data_dir, options=options or {})
    if set(reader.class_names) != set(class_names):
        raise UsageError(
            f"`data` must have the classes that the network was trained on ({len(class_names)}: {few(class_names)}), "
            f"got {shown_name(data)} with {len(reader.class_names)}: {few(reader.class_names)}: give data of the same "
            "classes, in folders of the same names"
        )
    return prepared_images(reader, class_names, preprocessing, skip=skip)


def prepared_images(reader: Reader, class_names: Sequence[str], preprocessing: Preprocessing, *, skip: bool) -> Images:
    """Return images as a network takes them in evaluation.

    Args:
        reader: Where the images come from.
        class_names: The reader's, in the order of the network's outputs.
        preprocessing: The network's.
        skip: Whether unreadable images are left out and counted.
    """
    images = Images(
        reader,
        class_names,
        in_chans=preprocessing.channels,
        scaled_to=preprocessing.scaled_to,
        skip_unreadable=skip,
    )
    images.transform = val_transform(preprocessing)
    return images


def _open_reader(data: str, split: str, *, alone: bool, data_dir: str | None, options: Mapping[str, Any]) -> Reader:
    """Open one split of a dataset; `alone` if the path is that of this split and not of both."""
    kind, _, name = data.partition("/")
    if not takes_options(data) and (data_dir is not None or options):
        given = "data_options" if data_dir is None else "data_dir"
        raise UsageError(
            f"`{given}` must be given with torch/ or hfds/ only, got {shown(data_dir or options)} with {shown(data)}: "
            "leave it out"
        )
    check_path(data, "data")
    check_path(data_dir or "", "data_dir")
    if kind in ("torch", "hfds", "wds") and not name.strip("/"):
        one = "the directory of the shards" if kind == "wds" else "cifar10 for one"
        raise UsageError(f"`data` must have a name after {kind}/, got {shown(data)}: {one}; a folder is ./{kind}")
    reader = _reader_of(data, split, alone=alone, data_dir=data_dir, options=options)
    reader.class_names = check_class_names(reader.class_names, data)
    return reader


def _reader_of(data: str, split: str, *, alone: bool, data_dir: str | None, options: Mapping[str, Any]) -> Reader:
    kind, _, name = data.partition("/")
    if data in EMBEDDED:
        return EMBEDDED[data].reader(split)
    if kind == "torch":
        if data_dir is None:
            raise UsageError(
                f"`data_dir` must say where the files are (or go), got None with {data!r}: give --data-dir"
            )
        return TorchReader(name, split, data_dir, options)
    if kind == "hfds":
        return HuggingFaceReader(name, split, data_dir, options)
    if kind == "wds":
        return ShardReader(Path(name), split)
    return open_path(Path(data), split, alone=alone)


def _shared_classes(data: str, readers: Mapping[str, Reader]) -> tuple[str, ...]:
    names, others = readers["train"].class_names, readers["val"].class_names
    if set(names) != set(others):
        only = [
            f"only {split} has {few(sorted(extra), most=5)}"
            for split, extra in (("train", set(names) - set(others)), ("val", set(others) - set(names)))
            if extra
        ]
        raise UsageError(
            f"`data` must have the same classes for training and validation, got {shown_name(data)} where "
            f"{' and '.join(only)}: add the missing ones or remove the others"
        )
    if len(names) < 2:
        raise UsageError(
            f"`data` must have at least two classes, got {len(names)} in {shown_name(data)}"
            f"{f' ({few(names)})' if names else ''}: put the images of each class into a folder of its own"
        )
    return names


def train_transform(config: TrainConfig, preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """Return a function that makes `[C, S, S]` float32 of a PIL image, augmented at random as a run's settings say.

    Raises:
        UsageError: timm does not know the policy.
    """
    is_embedded = config.data in EMBEDDED
    min_crop = config.min_crop if config.min_crop is not None else (1.0 if is_embedded else 0.25)
    hflip = config.hflip if config.hflip is not None else (0.0 if is_embedded else 0.5)
    options = (config.color_jitter, config.auto_augment, config.random_erasing, hflip, min_crop < 1)
    try:
        transform = create_transform(
            (preprocessing.channels, preprocessing.size, preprocessing.size),
            is_training=True,
            no_aug=not any(options),
            scale=(min_crop, 1.0),
            ratio=(3 / 4, 4 / 3) if min_crop < 1 else (1.0, 1.0),
            hflip=hflip,
            # None, not 0, which would draw a new order of operations that do nothing for each image.
            color_jitter=config.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=config.auto_augment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            normalize=False,
        )
    except (AssertionError, ValueError, KeyError) as error:  # of its parser; it checks with assertions
        raise UsageError(
            f"`auto_augment` must be a policy that timm knows, got {shown(config.auto_augment)}: rand-m9-mstd0.5, "
            "augmix-m5-w4, original and 3a are some"
        ) from error
    last: list[Callable[[Any], Any]] = [_Normalize(preprocessing)]
    if config.random_erasing:
        last.append(RandomErasing(config.random_erasing, mode="const", device="cpu"))
    return Compose([transform, *last])


def val_transform(preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """Return a function that makes `[C, S, S]` float32 of a PIL image, without randomness."""
    transform = create_transform(
        (preprocessing.channels, preprocessing.size, preprocessing.size),
        crop_pct=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        normalize=False,
    )
    return Compose([transform, _Normalize(preprocessing)])


class _Normalize:
    """Makes normalised float32 of 8-bit pixels `[C, H, W]`.

    For small images this is much of what reading costs: torchvision's two steps, which work on floating point
    numbers, take three times as long.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (preprocessing.mean, preprocessing.std))
        self._scale = 1 / (255 * std)
        self._shift = mean / std

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self._scale).sub_(self._shift)
