"""Tar files: checks that `tarfile` does not make, and the class that an image's path names."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from condconv.errors import shown_name
from condconv.lab.data.contents import HIDDEN, ODD, is_hidden, is_image

_BLOCK = 512
_LARGEST_HEADER = 2**20  # bytes: names and the like, which tarfile reads at once, however long they say they are
_LARGEST_RECORD = 2**20  # bytes; tar's are 10 KiB unless asked for others
# How the files of each program begin; a tar file begins with the name of its first member.
_COMPRESSED = {
    "gzip": rb"\x1f\x8b\x08",
    "bzip2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\x00",
    "zstd": rb"\x28\xb5\x2f\xfd",
}


class _Headers:
    """A file from which only headers are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size / 2**20:.0f} MiB")
        return self._file.read(size)


def members(path: Path, start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file that is not compressed, and check that it is complete.

    `tarfile` takes a header that is damaged, or not there, for the end of the file, and loses the rest.

    Args:
        path: A file.
        start: Where in it the tar file begins, for one inside another; offsets count from the file's start.
        end: Where it ends at the latest; `None` for the file's end.

    Raises:
        tarfile.TarError: It is damaged, does not end as tar files do, or another tar file follows it.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        file.seek(start)
        where = start
        if (program := _compressed_by(file.read(10))) is not None:
            raise tarfile.ReadError(f"it is compressed: decompress it with {program} -dc OLD.tar > NEW.tar")
        file.seek(start)
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # kept, ImageNet's take a gigabyte
                    if member.size < 0 or archive.offset <= where:  # it would be read in an endless loop
                        raise tarfile.ReadError("a size below zero")
                    if end is not None and member.offset_data > end:  # a header of the file that this one is in
                        raise tarfile.ReadError(f"damaged or cut off after {where} bytes")
                    where = archive.offset
                    yield member
                where = archive.offset
        except (ValueError, OverflowError, RecursionError) as error:  # of numbers in headers, and headers in headers
            raise tarfile.ReadError(f"damaged after {where} bytes") from error
        file.seek(where)
        if file.read(_BLOCK).count(0) != _BLOCK:
            raise tarfile.ReadError(f"damaged or cut off after {where} bytes")
        if _is_followed(file, path.stat().st_size if end is None else end):
            raise tarfile.ReadError(f"another tar file follows it after {where} bytes: unpack both, pack them as one")


def _is_followed(file: IO[bytes], end: int) -> bool:
    """Return whether a tar file begins behind another one's end: `cat` puts them so, and `tarfile` ends at the first.

    Looks behind as many zeros as any program fills the last record with.
    """
    part = file.read(max(0, min(_LARGEST_RECORD, end - file.tell())))
    at = (len(part) - len(part.lstrip(b"\0"))) // _BLOCK * _BLOCK
    return part[at + 257 : at + 262] == b"ustar"


def _compressed_by(start: bytes) -> str | None:
    """Return the program that compressed a file that begins like this, or None."""
    return next((program for program, magic in _COMPRESSED.items() if re.match(magic, start)), None)


def files(path: Path, left_out: Counter[str], start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file that are regular files.

    Args:
        path: A file.
        left_out: Counts pipes and devices.
        start: Where in it the tar file begins, for one inside another.
        end: Where that ends at the latest; `None` for the file's end.

    Raises:
        tarfile.TarError: It is damaged or incomplete, or its files are compressed or sparse.
        OSError: It cannot be read.
    """
    end = path.stat().st_size if end is None else end
    for member in members(path, start, end):
        name = shown_name(member.name)
        if member.issym() or member.islnk():
            raise tarfile.ReadError(f"{name} in it is a link: pack with tar --dereference --hard-dereference")
        if member.issparse():
            raise tarfile.ReadError(f"{name} in it is stored without its zeros: pack without --sparse")
        if member.isreg():
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"{name} in it is cut off")
            yield member
        elif not member.isdir():
            left_out[ODD] += 1


def images(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each image in a tar file, and in the tar files that are members of it.

    Hidden folders are left out, as in directories, and counted. Names are as they would be once unpacked: relative, and
    never above the folder unpacked into.

    Raises:
        tarfile.TarError: One of them is damaged or incomplete.
        OSError: One of them cannot be read.
    """
    hidden: set[str] = set()
    for name, offset, size in _all_images(path, left_out):
        folder = _hidden_folder(name)
        if folder is None:
            yield name, offset, size
        elif folder not in hidden:
            hidden.add(folder)
            left_out[HIDDEN] += 1


def _hidden_folder(name: str) -> str | None:
    """Return the first hidden folder that an image is in, or None."""
    folders = PurePosixPath(name).parts[:-1]
    return next(("/".join(folders[: index + 1]) for index, each in enumerate(folders) if is_hidden(each)), None)


def _all_images(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, int, int]]:
    for member in files(path, left_out):
        if not member.name.lower().endswith(".tar"):
            if is_image(member.name):
                yield _unpacked(member.name), member.offset_data, member.size
            continue
        try:
            for each in files(path, left_out, member.offset_data, member.offset_data + member.size):
                if is_image(each.name):
                    yield f"{_unpacked(member.name)}/{_unpacked(each.name)}", each.offset_data, each.size
        except tarfile.TarError as error:
            raise tarfile.ReadError(f"{shown_name(member.name)} in it: {error}") from error


def _unpacked(name: str) -> str:
    return posixpath.normpath("/" + name.lstrip("/"))[1:]


def class_folders_of(names: Sequence[str]) -> list[str]:
    """Return the class that each path names: its first folder or tar file, below one that holds everything."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while all(len(parts) > depth + 1 for parts in folders) and len({parts[depth] for parts in folders}) == 1:
        depth += 1
    return [parts[depth].removesuffix(".tar") if len(parts) > depth else "" for parts in folders]
