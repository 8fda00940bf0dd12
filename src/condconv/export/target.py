"""Where a file goes: it is written into a folder beside its place, and moved there once it is good."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from condconv.errors import UsageError

_PACKAGES = (".mlpackage",)  # directories that count as a file


def check_path(path: Path, format: str, suffix: str) -> None:
    """Refuse a path that cannot become a file of a format.

    Args:
        path: To write.
        format: Its name, for messages.
        suffix: Of its files, with the point.

    Raises:
        UsageError: Another suffix, no directory to write into, a directory in the file's place, or an impossible name.
    """
    if path.suffix != suffix:
        raise UsageError(
            f"`path` must end in {suffix} for {format}, got {path}: name it {path.stem or 'network'}{suffix}"
        )
    if not path.resolve().parent.is_dir():
        raise UsageError(f"`path` must be in a directory that exists, got {path}: make it first")
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise _unwritable(path, error) from error
    if is_directory and suffix not in _PACKAGES:
        raise UsageError(f"`path` must be a file, got the directory {path}: take another name")


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder on the disk of a path, for as long as the context lasts.

    Args:
        path: Of a file, which need not exist; its directory has to.

    Raises:
        UsageError: Nothing can be written there.
    """
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    with folder as name:
        yield Path(name)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"`path` must be where files can be made, got {path} ({error.strerror}): take another directory or name"
    )


def move(folder: Path, target: Path) -> None:
    """Move everything in a folder to another one of the same disk, over what is there."""
    for file in [*folder.iterdir()]:
        old = target / file.name
        if file.is_dir() and old.is_dir():
            shutil.rmtree(old)
        elif file.is_dir():
            old.unlink(missing_ok=True)
        file.replace(old)
