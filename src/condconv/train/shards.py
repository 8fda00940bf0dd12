"""WebDataset shards: tar files of numbered samples, `0001.jpg` beside `0001.cls`, read at random.

timm's reader streams shards: it leaves unreadable images out without counting them, and with several processes scores
some validation images twice. An index of where each image lies costs one pass over the headers, and then shards are
read like any other images.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from condconv.errors import UsageError
from condconv.train.tars import members

_SPLITS = {"train": ("train",), "val": ("val", "test")}
_IMAGES = {"jpg", "jpeg", "png", "webp"}


class ShardReader:
    """Images of one split.

    Args:
        root: Directory with `*train*.tar` and `*val*.tar` (also `*test*.tar`). Its `classes.txt`, one name a line,
            names the classes; without it they are called by their numbers.
        split: `"train"` or `"val"`.

    Attributes:
        class_names: Of all classes in `classes.txt`, or of those that occur.

    Raises:
        UsageError: There are no shards, or a shard or a sample is not as described.
    """

    def __init__(self, root: Path, split: str) -> None:
        self._shards = _find(root, split)
        rows = [(number, *row) for number, shard in enumerate(self._shards) for row in _scan(shard)]
        if not rows:
            raise UsageError(
                f"`data` must have samples of an image and a .cls, got none in {self._shards[0]}: check it"
            )
        # An array, since a million tuples would take a hundred times the memory, in each worker.
        self._rows = np.array(rows, dtype=np.int64)  # [N, 4]: shard, offset, bytes, class
        names = root / "classes.txt"
        labels = self._rows[:, 3]
        if names.is_file():
            self.class_names = tuple(names.read_text(encoding="utf-8").splitlines())
            if len(set(self.class_names)) < len(self.class_names) or labels.max() >= len(self.class_names):
                raise UsageError(
                    f"`data` must have a name of its own for each class, got {names} with {len(self.class_names)} "
                    f"lines and classes up to {labels.max()}: write one name a line, from class 0 on"
                )
        else:
            occurring, self._rows[:, 3] = np.unique(labels, return_inverse=True)
            self.class_names = tuple(str(label) for label in occurring)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        shard, offset, size, label = self._rows[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def filename(self, index: int) -> str:
        """Return the path of the shard and the name of the image in it."""
        shard, offset = self._shards[self._rows[index, 0]], self._rows[index, 1]
        with tarfile.open(shard, "r:") as archive:
            return f"{shard}/{next(member.name for member in archive if member.offset_data == offset)}"


def _find(root: Path, split: str) -> list[Path]:
    for name in _SPLITS[split]:
        shards = sorted(root.glob(f"*{name}*.tar"))
        if shards:
            return shards
    wanted = " or ".join(f"*{name}*.tar" for name in _SPLITS[split])
    raise UsageError(f"`data` must be a directory with shards {wanted}, got {root} with none: check the path")


def _scan(shard: Path) -> Iterator[tuple[int, int, int]]:
    """Yield offset, size and class of each sample's image."""
    try:
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        with shard.open("rb") as file:
            for member in members(shard):
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                if extension.lower() in _IMAGES:
                    images[f"{folder}/{key}"] = (member.offset_data, member.size)
                elif extension == "cls":
                    file.seek(member.offset_data)
                    labels[f"{folder}/{key}"] = _label(file.read(member.size), member, shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"`data` must be whole tar files, got {shard} ({error}): make it again") from error
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        raise UsageError(
            f"`data` must have an image (.{', .'.join(sorted(_IMAGES))}) and a .cls for each sample, got one of the "
            f"two for {alone[0].removeprefix('/')} in {shard}: complete the sample or remove it"
        )
    yield from ((*images[key], labels[key]) for key in images)


def _label(text: bytes, member: tarfile.TarInfo, shard: Path) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise UsageError(f"`data` must have a class number in each .cls, got {text[:20]!r} in {shard}/{member.name}")
    return label
