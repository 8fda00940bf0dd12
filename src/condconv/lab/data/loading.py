"""Images in batches: the order of an epoch, and errors that arise in worker processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from condconv.errors import UsageError
from condconv.lab.data.workers import ShortageError, check_handles, shortages_explained


class EpochSampler(Sampler[int]):
    """Orders the images by (seed, epoch) only, and gives whole updates only.

    Args:
        images: Number of images.
        batch_size: Images per update; the rest of an epoch's images is left out, other ones each epoch.
        seed: Seed of the run.

    Attributes:
        epoch: Set before each epoch.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self._images = images
        self._used = images // batch_size * batch_size
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._used

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self.epoch) % 2**64)  # all that torch takes
        yield from torch.randperm(self._images, generator=generator)[: self._used].tolist()


def create_loader(
    images: Dataset[tuple[Any, int]],
    batch_size: int,
    *,
    workers: int = 0,
    sampler: Sampler[int] | None = None,
) -> DataLoader[tuple[Any, int]]:
    """Return a loader whose workers restart each epoch, so that their random numbers can be repeated.

    Raises:
        ShortageError: There are too few file handles for the workers.
    """
    check_handles(workers)
    pin = torch.cuda.is_available()
    return DataLoader(images, batch_size, sampler=sampler, num_workers=workers, pin_memory=pin)


def batches(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a loader; an unreadable image in a worker is reported like one here."""
    try:
        with shortages_explained():
            yield from loader
    except (UsageError, ShortageError) as error:
        # torch re-raises a worker's exception with the worker's whole traceback as its text; the last line
        # is ours.
        raise type(error)(re.sub(r"^condconv[\w.]+: ", "", str(error).strip().splitlines()[-1])) from error
