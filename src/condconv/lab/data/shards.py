"""WebDataset shards: tar files of numbered samples, `0001.jpg` and `0001.cls`, read at random.

timm's reader streams shards: it leaves unreadable images out without counting them, and with several processes scores
some validation images twice. An index of where each image lies costs one pass over the headers, and then shards are
read like any other images.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from condconv.errors import UsageError, few, shown, shown_name
from condconv.files.paths import check_path, read_text
from condconv.lab.data.contents import ODD, log_left_out, read_part
from condconv.lab.data.tars import files

_SPLITS = {"train": ("train",), "val": ("val", "test")}
_IMAGES = {"jpg", "jpeg", "png", "webp"}
_LONGEST_LIST = 2**26  # bytes of classes.txt
_LONGEST_NUMBER, _LARGEST_CLASS = 20, 2**31 - 1  # bytes of a .cls, and what a number in it may be


class ShardReader:
    """Images of one split.

    Args:
        root: Directory with `*train*.tar` and `*val*.tar` (also `*test*.tar`). Its `classes.txt`, one name per line,
            names the classes; without it they are called by their numbers.
        split: `"train"` or `"val"`.

    Attributes:
        class_names: Of all classes in `classes.txt`, or of those that occur.

    Raises:
        UsageError: There are no shards, or a shard or a sample is not as described.
    """

    def __init__(self, root: Path, split: str) -> None:
        left_out: Counter[str] = Counter()
        self._shards = _find(root, split, left_out)
        self._names: dict[int, dict[int, str]] = {}  # of the images of a shard by offset
        rows = [(number, *row) for number, shard in enumerate(self._shards) for row in _scan(shard, left_out)]
        if not rows:
            raise UsageError(
                f"`data` must have samples of an image and a .cls, got none in {shown_name(self._shards[0])}: check it"
            )
        log_left_out(left_out, root)
        # An array, since a million tuples would take a hundred times the memory, in each worker.
        self._rows = np.array(rows, dtype=np.int64)  # [N, 4]: shard, offset, bytes, class
        names = root / "classes.txt"
        labels = self._rows[:, 3]
        if names.exists() or names.is_symlink():
            self.class_names = _read_names(names)
            if len(set(self.class_names)) < len(self.class_names) or labels.max() >= len(self.class_names):
                raise UsageError(
                    f"`data` must have a name of its own for each class, got {shown_name(names)} with "
                    f"{len(self.class_names)} lines and classes up to {labels.max()}: write one name per line, from "
                    "class 0 on"
                )
        else:
            occurring, self._rows[:, 3] = np.unique(labels, return_inverse=True)
            self.class_names = tuple(str(label) for label in occurring)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        shard, offset, size, label = self._rows[index].tolist()
        return read_part(self._shards[shard], offset, size), label

    def filename(self, index: int) -> str:
        """Return the path of the shard and the name of the image in it."""
        shard, offset = self._rows[index, :2].tolist()
        if shard not in self._names:  # read again when first asked for, and once: they would take memory in each worker
            self._names[shard] = {each.offset_data: each.name for each in files(self._shards[shard], Counter())}
        return f"{self._shards[shard]}/{self._names[shard][offset]}"


def _find(root: Path, split: str, left_out: Counter[str]) -> list[Path]:
    check_path(root, "data")
    for name in _SPLITS[split]:
        found = sorted(root.glob(f"*{name}*.tar"))
        shards = [each for each in found if each.is_file()]
        left_out[ODD] += sum(1 for each in found if each.exists() and not each.is_file() and not each.is_dir())
        if shards:
            _check_split(shards, split)
            return shards
    wanted = " or ".join(f"*{name}*.tar" for name in _SPLITS[split])
    raise UsageError(
        f"`data` must be a directory with shards {wanted}, got {shown_name(root)} with none: check the path"
    )


def _check_split(shards: list[Path], split: str) -> None:
    """Check that the names of shards are of one split: a network would be scored on images that it was trained on.

    Raises:
        UsageError: One is of the other split too, as trainval.tar is.
    """
    (other,) = (_SPLITS[each][0] for each in _SPLITS if each != split)
    both = [each.name for each in shards if other in each.name]
    if both:
        raise UsageError(
            f"`data` must have shards whose names are of one split, train or val, got {few(both)}: rename them, or "
            "give another directory"
        )


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        text = read_text(path, _LONGEST_LIST, "utf-8-sig")  # Windows' editors put a mark before the first name
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`data` must have a classes.txt of text in UTF-8, got {shown_name(path)} ({shown_name(error)}): save it so"
        ) from error
    return tuple(text.rstrip("\n").split("\n"))  # not splitlines(): other characters may be part of a name


def _scan(shard: Path, left_out: Counter[str]) -> Iterator[tuple[int, int, int]]:
    """Yield offset, size and class of each sample's image."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        for member in files(shard, left_out):
            folder, _, name = member.name.rpartition("/")
            key, _, extension = name.partition(".")
            if extension.lower() in _IMAGES:
                image = images.setdefault(f"{folder}/{key}", (extension, 0, 0))
                if image[0] != extension:
                    raise UsageError(
                        f"`data` must have one image for each sample, got .{image[0]} and .{extension} for "
                        f"{shown_name(key)} in {shown_name(shard)}: remove one of them"
                    )
                images[f"{folder}/{key}"] = (extension, member.offset_data, member.size)
            elif extension == "cls":
                labels[f"{folder}/{key}"] = _label(member, shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(
            f"`data` must be whole tar files, got {shown_name(shard)} ({shown_name(error)}): make it again"
        ) from error
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        raise UsageError(
            f"`data` must have an image (.{', .'.join(sorted(_IMAGES))}) and a .cls for each sample, got one of the "
            f"two for {shown_name(alone[0].removeprefix('/'))} in {shown_name(shard)}: complete the sample or remove it"
        )
    yield from ((offset, size, labels[key]) for key, (_, offset, size) in images.items())


def _label(member: tarfile.TarInfo, shard: Path) -> int:
    text = read_part(shard, member.offset_data, min(member.size, _LONGEST_NUMBER + 1)).read()
    written = text.strip()
    label = int(written) if written.isdigit() and len(text) <= _LONGEST_NUMBER else -1  # int takes 1_0 for 10
    if not 0 <= label <= _LARGEST_CLASS:
        raise UsageError(
            f"`data` must have a class number from 0 to {_LARGEST_CLASS} in each .cls, got {shown(text)} in "
            f"{shown_name(shard)}/{shown_name(member.name)}: write the number of its class"
        )
    return label
