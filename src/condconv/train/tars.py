"""Tar files: what `tarfile` leaves out, and which class an image's path names."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from torchvision.datasets.folder import IMG_EXTENSIONS

_BLOCK = 512


def members(path: Path, start: int = 0) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file that is not compressed, and see that it is whole.

    `tarfile` takes a header that is damaged, or not there, for the end of the file, and loses the rest.

    Args:
        path: A file.
        start: Where in it the tar file begins, for one inside another; offsets count from the file's start.

    Raises:
        tarfile.TarError: It cannot be read, or does not end as tar files do.
        OSError: Likewise.
    """
    with path.open("rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # kept, ImageNet's take a gigabyte
                yield member
            where = archive.offset
        file.seek(where)
        if file.read(_BLOCK).count(0) != _BLOCK:
            raise tarfile.ReadError(f"damaged or cut off after {where} bytes")


def images(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each image in a tar file, and in the tar files that are members of it.

    Raises:
        tarfile.TarError: One of them cannot be read, or is not whole.
        OSError: Likewise.
    """
    for member in members(path):
        inside: Iterable[tuple[str, tarfile.TarInfo]] = [(member.name, member)]
        if member.name.lower().endswith(".tar") and member.isfile():
            inside = ((f"{member.name}/{each.name}", each) for each in members(path, member.offset_data))
        for name, each in inside:
            if each.offset_data + each.size > member.offset_data + member.size:
                raise tarfile.ReadError(f"{member.name} in it is damaged or cut off")
            if each.issym() or each.islnk():
                raise tarfile.ReadError(f"{name} in it is a link: pack with tar --dereference --hard-dereference")
            if each.isfile() and is_image(name):
                yield name, each.offset_data, each.size


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name; macOS leaves files ._NAME beside those it copies elsewhere."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith("._")


def class_folders(names: Sequence[str]) -> list[str]:
    """Return the class that each path names: its first folder or tar file, below one that holds everything."""
    folders = [tuple(part for part in PurePosixPath(name).parts[:-1] if part != ".") for name in names]
    depth = 0
    while all(len(parts) > depth + 1 for parts in folders) and len({parts[depth] for parts in folders}) == 1:
        depth += 1
    return [parts[depth].removesuffix(".tar") if len(parts) > depth else "" for parts in folders]
