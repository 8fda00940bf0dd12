"""Tar files: what `tarfile` leaves out, and which class an image's path names."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

_BLOCK = 512


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file that is not compressed, and see that it is whole.

    `tarfile` takes a header that is damaged, or not there, for the end of the file, and loses the rest.

    Raises:
        tarfile.TarError: It cannot be read, or does not end as tar files do.
        OSError: Likewise.
    """
    with tarfile.open(path, "r:") as archive:
        yield from archive
        where = archive.offset
    with path.open("rb") as file:
        file.seek(where)
        if file.read(_BLOCK).count(0) != _BLOCK:
            raise tarfile.ReadError(f"damaged or cut off after {where} bytes")


def class_folders(names: Sequence[str]) -> list[str]:
    """Return the class that each path names: its first folder, below one that holds everything."""
    folders = [tuple(part for part in PurePosixPath(name).parts[:-1] if part != ".") for name in names]
    depth = 0
    while all(len(parts) > depth + 1 for parts in folders) and len({parts[depth] for parts in folders}) == 1:
        depth += 1
    return [parts[depth] if len(parts) > depth else "" for parts in folders]
