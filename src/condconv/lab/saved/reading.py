"""Which images a trained network is run on, and how they are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from condconv.errors import UsageError, shown
from condconv.files.paths import check_path
from condconv.lab.config import EMBEDDED, is_named
from condconv.lab.data.folder import LooseReader, find_split
from condconv.lab.data.image_data import open_trained, prepared_images
from condconv.lab.data.images import Images
from condconv.lab.data.loading import batches, create_loader
from condconv.lab.data.walking import class_folders
from condconv.lab.rules import one_of, or_none, whole
from condconv.lab.saved.checkpoint import Checkpoint

_MOST_IMAGES, _USUAL_SIDE = 64, 512  # of a batch, and pixels a side up to which it has as many


@dataclass(frozen=True)
class Reading:
    """How images are read and where the network runs.

    Attributes:
        max_images: Most images, a fixed random choice; None for all.
        batch_size: Images per forward pass; None for 64, or fewer if images are larger than 512 pixels.
        workers: Processes that read images.
        on_bad_image: `"error"` or `"skip"`.
        device: `"auto"` or `"cpu"`.
        progress: Whether to show a bar on a terminal.

    Raises:
        UsageError: A number is too small, or a choice is none of those above.
    """

    max_images: int | None = None
    batch_size: int | None = None
    workers: int = 0
    on_bad_image: str = "error"
    device: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        or_none(whole(1, 1_000_000_000)).check("max_images", self.max_images)
        or_none(whole(1)).check("batch_size", self.batch_size)
        whole(0).check("workers", self.workers)
        one_of("error", "skip").check("on_bad_image", self.on_bad_image)
        one_of("auto", "cpu").check("device", self.device)

    @property
    def skip(self) -> bool:
        """Whether unreadable images are left out and counted."""
        return self.on_bad_image == "skip"

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the GPU if there is one and the device is `"auto"`; else lay it out for the CPU.

        Channels last is how the compiled kernels read images; in the other layout each layer copies its input first.
        """
        if self.device == "auto" and torch.cuda.is_available():
            return network.to("cuda")
        return network.cpu().to(memory_format=torch.channels_last)

    def choose(self, images: Images) -> list[int]:
        """Return the numbers of the images to read, mixed, always the same."""
        order: list[int] = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        return order[: self.max_images]

    def loader(self, images: Images, order: list[int] | None = None) -> DataLoader[tuple[Any, int]]:
        """Return a loader of images, by their numbers; None for all of them as they come."""
        chosen = images if order is None else Subset(images, order)
        return create_loader(chosen, self.batch_size or _usual_batch(images.scaled_to), workers=self.workers)

    def read(self, images: Images, order: list[int], title: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of these numbers, and their classes, in batches, under a bar with a title."""
        loader = self.loader(images, order)
        yield from tqdm(batches(loader), title, len(loader), disable=None if self.progress else True)


def _usual_batch(side: int) -> int:
    """Return how many images of this many pixels a side take bounded memory: a file may ask for any size."""
    return max(1, min(_MOST_IMAGES, _MOST_IMAGES * _USUAL_SIDE**2 // side**2))


def own_data(checkpoint: Checkpoint, split: str) -> str:
    """Return the data of a checkpoint's run, if a file may decide to open it: the digits, which are embedded.

    A stranger's file can name any directory of this machine, a dataset that is fetched, or one with code of its own.
    What lies next to the file proves nothing, since a whole directory may be a stranger's.

    Raises:
        UsageError: The run has other data, which whoever runs a command has to name.
    """
    data = checkpoint.config.data_of(split)
    if data in EMBEDDED:
        return data
    typed = "DIRECTORY"
    if is_named(data):
        typed = data if re.fullmatch(r"[\w./-]{1,100}", data, re.ASCII) else f"{data.partition('/')[0]}/NAME"
    more = " --data-dir DIRECTORY" if typed.startswith("torch/") else ""
    raise UsageError(
        f"`data` must be given for a network that was trained on {shown(data)}, got None: a file cannot decide which "
        f"images are read; add --data {typed}{more}"
    )


def open_labelled(
    checkpoint: Checkpoint, data: str, *, split: str = "val", data_dir: str | None = None, skip: bool = False
) -> Images:
    """Open images with classes as the network of a checkpoint takes them.

    Args:
        checkpoint: The network's; it has size, channels, normalization and class names.
        data: As in `evaluate_checkpoint`; for the checkpoint's own data the options of its reader are used too.
        split: `"val"` or `"train"`.
        data_dir: Where the files of a named set are; what the checkpoint says of that is not used.
        skip: Whether unreadable images are left out and counted.

    Raises:
        UsageError: The data cannot be used, or has other classes.
    """
    config = checkpoint.config
    # The rule of these options lets through what is data only, so it does not matter who wrote them.
    own = data in (config.data, config.val_data)
    return open_trained(
        data,
        checkpoint.class_names,
        checkpoint.preprocessing,
        split=split,
        skip=skip,
        data_dir=data_dir,
        options=config.reader_options(data)["options"] if own else {},
    )


def open_images(
    checkpoint: Checkpoint, data: str, *, split: str = "val", data_dir: str | None = None, skip: bool = False
) -> tuple[Images, bool]:
    """Open images, with or without classes, and return whether they have them.

    Args:
        checkpoint: As in `open_labelled`.
        data: As in `open_labelled`, or a directory of images without class folders.
        split: `"val"`, or `"train"` for the images of `train/`, where a directory has them apart.
        data_dir: As in `open_labelled`.
        skip: As in `open_labelled`.

    Raises:
        UsageError: The data is missing, or its classes are not the network's.
    """
    check_path(data, "data")
    folder = Path(data)
    if folder.is_dir() and not is_named(data):
        split = split if find_split(folder, split) else "val"
        folder = find_split(folder, split) or folder
        if folder.is_dir() and not class_folders(folder, Counter()):
            return prepared_images(LooseReader(folder), ("",), checkpoint.preprocessing, skip=skip), False
    return open_labelled(checkpoint, data, split=split, data_dir=data_dir, skip=skip), True
