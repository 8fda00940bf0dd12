"""Images below a directory, and the folders of its classes, where links may lead anywhere."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from condconv.errors import UsageError, shown_name
from condconv.lab.data.contents import HIDDEN, LINKS, NOWHERE, ODD, is_hidden, is_image, natural_order


def class_folders(root: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """Return the names of the directories in a directory, 2 before 10; hidden ones are not classes.

    Args:
        root: The directory.
        left_out: Counts what is left out.

    Raises:
        UsageError: It cannot be read.
    """
    above = {*_above(root), _identity(root)}
    found = []
    for entry in _entries(root):
        if _kind(entry, left_out) != "folder":
            continue
        if is_hidden(entry.name):
            left_out[HIDDEN] += 1
        elif _identity(Path(entry.path)) in above:
            left_out[LINKS] += 1
        else:
            found.append(entry.name)
    return tuple(sorted(found, key=natural_order))


def images_below(root: Path, left_out: Counter[str]) -> list[str]:
    """Return the paths of all images below a directory, at any depth, in the order of their names; no hidden folders.

    A link to a file is that file. A link to a directory is followed, unless that is above the link or was read already.

    Args:
        root: The directory.
        left_out: Counts what is left out.

    Raises:
        UsageError: A directory cannot be read.
    """
    found: list[str] = []
    seen = _above(root)
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        folder = (folders or links).popleft()
        identity = _identity(folder)
        if identity in seen:
            left_out[LINKS] += 1
            continue
        seen.add(identity)
        for entry in _entries(folder):
            kind = _kind(entry, left_out)
            if kind == "folder" and is_hidden(entry.name):
                left_out[HIDDEN] += 1
            elif kind == "folder":
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif kind == "file" and is_image(entry.name):
                found.append(entry.path)
    return sorted(found, key=natural_order)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with _readable(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[str], left_out: Counter[str]) -> str | None:
    """Return "folder" or "file", also of what a link leads to, or None for what is neither, which is counted."""
    if entry.is_file(follow_symlinks=False):  # known without asking the disk
        return "file"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        mode = entry.stat().st_mode
    except OSError:
        if is_image(entry.name):
            return "file"  # an image that is not there: reading it says so
        left_out[NOWHERE] += 1
        return None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        left_out[ODD] += 1
        return None
    return "folder" if stat.S_ISDIR(mode) else "file"


def _above(folder: Path) -> set[tuple[int, int]]:
    """Return the directories above a directory, by its name and by where that leads."""
    return {_identity(each) for path in (folder.absolute(), folder.resolve()) for each in path.parents}


def _identity(folder: Path) -> tuple[int, int]:
    with _readable(folder):
        status = folder.stat()
    return status.st_dev, status.st_ino


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"`data` must have directories that can be read, got {shown_name(folder)} ({error.strerror}): change its "
            "permissions, or remove it"
        ) from error
