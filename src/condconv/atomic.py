"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from condconv.errors import UsageError


def check_can_write(path: Path) -> None:
    """Check that a file can be written here: said before the work begins, not after it.

    Args:
        path: File to write; one of that name may be there.

    Raises:
        UsageError: There is no such directory, it cannot be written to, or a directory has the name.
    """
    if _is_special(path):
        return
    if _exists(path) and path.is_dir():
        raise UsageError(f"`out` must be a file, got {path}, which is a directory: name a file in it")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"`out` must be in a directory that exists, got {path}: make {folder} first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"`out` must be in a directory that can be written to, got {path}: take another")


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, if it is not there.

    Raises:
        UsageError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"`out` must be a directory that can be made, got {path} ({error.strerror})") from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a crash at any moment leaves the previous file, or the new one, whole.

    The bytes go to a temporary file in the same directory, are flushed to the disk, and the file is renamed.

    Args:
        path: File to write; its directory exists.
        content: Bytes, or text that is encoded as UTF-8.

    Raises:
        UsageError: The file cannot be written (disk full, no permission, no such directory); the previous
            file is intact.
    """
    payload = content.encode() if isinstance(content, str) else content
    given, path = path, path.resolve()  # or a link would become a file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise UsageError(f"{given} must be a file to be written, and is a directory: give another name")
        if _is_special(path):  # renaming would put a file in its place
            path.write_bytes(payload)
            return
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise UsageError(_explain(path, error, len(payload))) from error
        raise


def _is_special(path: Path) -> bool:
    """Return whether there is a pipe or a device."""
    return _exists(path) and not path.is_file() and not path.is_dir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # of a name that is too long
        return False


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files that a killed process left in a directory."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _explain(path: Path, error: OSError, size: int) -> str:
    kept = f"the previous {path.name} is intact" if _exists(path) else "nothing was written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk for {path} ({size / 2**20:.1f} MiB); {kept}: free some, run again"
    if error.errno == errno.EFBIG:
        return (
            f"no file of {size / 2**20:.1f} MiB may be written to {path.parent} (its file system, or a limit that "
            f"ulimit -f shows); {kept}: raise the limit, or write elsewhere"
        )
    return f"{path} must be in a directory that can be written to ({error.strerror}); {kept}"
