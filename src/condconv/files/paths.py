"""User-given paths, checked before work begins."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from condconv.errors import UsageError, shown_name

_LONGEST_PATH, _LONGEST_NAME = 4095, 255  # bytes, on Linux; no system allows more
_LEAST_HOLES = 2**28  # bytes of a file that may be holes, whatever the disk holds


def why_not_path(path: str | Path) -> str | None:
    """Return why a text cannot be the path of a file or a directory, existing or not, or None; the disk is not read."""
    try:
        encoded = str(path).encode()  # what JSON, CSV and other programs write of it has to be read back
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if b"\0" in encoded:
        return "it holds a null character"
    if len(encoded) > _LONGEST_PATH or any(len(name) > _LONGEST_NAME for name in re.split(rb"[/\\]", encoded)):
        return "it is too long"
    return None


def check_path(path: str | Path, argument: str = "out") -> None:
    """Check that a text can be the path of a file or a directory, existing or not.

    Raises:
        UsageError: It is longer than the system allows, not UTF-8, or its links lead in a circle.
    """
    reason = why_not_path(path)
    try:
        if reason is None:
            Path(path).stat()
    except OSError as error:
        reason = error.strerror if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else None
    if reason is not None:
        raise UsageError(
            f"`{argument}` must be a path that can be used, got {shown_name(path, 80)} ({reason}): give another"
        )


def check_can_write(path: Path, argument: str = "out") -> None:
    """Check, before work begins, that a file can be written here.

    Args:
        path: File to write; one of that name may be there.
        argument: Its name in messages.

    Raises:
        UsageError: There is no such directory, it cannot be written to, or a directory has the name.
    """
    check_path(path, argument)
    if is_special(path):
        return
    named = shown_name(path)
    if path.is_dir():
        raise UsageError(f"`{argument}` must be a file, got {named}, which is a directory: name a file in it")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(
            f"`{argument}` must be in a directory that exists, got {named}: make {shown_name(folder)} first"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"`{argument}` must be in a directory that can be written to, got {named}: take another")


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, if it is not there.

    Raises:
        UsageError: It cannot be made.
    """
    check_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"`out` must be a directory that can be made, got {shown_name(path)} ({error.strerror}): take another "
            "place or name, or remove what is in the way"
        ) from error


def is_special(path: Path) -> bool:
    """Return whether there is a pipe or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def is_mostly_holes(path: Path) -> bool:
    """Return whether the disk holds hardly anything of a large file, which would take as much memory as its size.

    Some file systems compress, but no file of weights to a sixtieth.
    """
    status = path.stat()
    held = 512 * getattr(status, "st_blocks", 0) or status.st_size  # not every system counts
    return status.st_size > max(_LEAST_HOLES, 60 * held)


def check_own(*paths: Path) -> None:
    """Check places where a command keeps its own files below a directory: a file or a directory is there, or nothing.

    A downloaded directory may hold anything: a link would let the command write to another place, and a pipe or a
    device might never end.

    Raises:
        UsageError: A link, a pipe or a device is there.
    """
    for path in paths:
        kind = "a link" if path.is_symlink() else "a pipe or a device" if is_special(path) else None
        if kind is not None:
            raise UsageError(
                f"`out` must not have other things in the place of a run's files, got {shown_name(path)}, {kind}: "
                "remove it, or give another --out"
            )


def check_own_files(*paths: Path) -> None:
    """Check places where a command keeps its own files, before work begins: a file is there, or nothing.

    Raises:
        UsageError: A directory is there, or something that `check_own` refuses.
    """
    check_own(*paths)
    for path in paths:
        if path.is_dir():
            raise UsageError(
                f"`out` must not have directories in the place of a run's files, got {shown_name(path)}: remove it, or "
                "give another --out"
            )


def read_text(path: Path, most: int = 2**26, encoding: str = "utf-8") -> str:
    """Return the text of a regular file of at most `most` bytes, which are not mostly holes.

    What JSON holds takes up to thirty times the bytes of its text.

    Raises:
        OSError: It is larger, of another kind, or cannot be read.
        ValueError: It is not of this encoding.
    """
    if path.exists() and (is_special(path) or path.stat().st_size > most or is_mostly_holes(path)):
        raise OSError(f"not a regular file of at most {most / 2**20:.0f} MiB, or of holes")
    return path.read_text(encoding=encoding)
