"""Atomic writing: a file is either the old one or the new one, never incomplete.

Every file of this package is written here: under a random name in the same directory, and renamed once it is
whole and on the disk.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from condconv.errors import UsageError, shown_name
from condconv.files.paths import check_own, check_path, is_special

_SUFFIX = ".tmp"


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a crash at any moment leaves the previous file, or the new one, whole.

    The bytes go to a temporary file in the same directory, are flushed to the disk, and the file is renamed. A link
    stays one: the file that it leads to is written.

    Args:
        path: File to write; its directory exists.
        content: Bytes, or text that is encoded as UTF-8.

    Raises:
        UsageError: The file cannot be written (disk full, no permission, no such directory); the previous
            file is intact.
    """
    check_path(path)
    if is_special(path):  # renaming would put a file in its place
        with _explained(path, "out", len(content)):
            path.write_bytes(_encoded(content))
        return
    _check_no_directory(path)
    with _explained(path, "out"):
        whole = path.resolve()  # or a link would become a file
    _write(whole, _encoded(content))


def write_own(path: Path, content: bytes | str) -> None:
    """Write a file that a command keeps below a directory, as `write_atomic` does, but never through a link.

    Raises:
        UsageError: A link, a pipe or a device is there, or the file cannot be written.
    """
    check_path(path)
    check_own(path)
    _check_no_directory(path)
    _write(path, _encoded(content))


def _encoded(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _check_no_directory(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"`out` must be a file, got {shown_name(path)}, which is a directory: name a file in it")


def _write(path: Path, payload: bytes) -> None:
    with _explained(path, "out", len(payload)):
        temporary = path.with_name(f"{_prefix(path.name)}{secrets.token_hex(8)}{_SUFFIX}")
        file = temporary.open("xb")  # never one that is there, nor through a link
        try:
            with file:
                file.write(payload)
            _put(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def written_beside(path: Path, argument: str = "out") -> Iterator[Path]:
    """Give a temporary name for a file; at the end it is renamed, with all that was written next to it.

    The name is in a new folder on the disk of the path, which is gone at the end. After an error nothing has moved.

    Args:
        path: Of a file, or of a directory that counts as one; it may be there, its directory has to be.
        argument: What messages call the path.

    Raises:
        UsageError: Nothing can be written there.
    """
    check_path(path, argument)
    path = path.resolve()
    with _explained(path, argument):
        made = tempfile.TemporaryDirectory(_SUFFIX, _prefix(path.name), path.parent)
    with made as folder:
        temporary = Path(folder) / path.name
        try:
            yield temporary
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UsageError(_explain(path, error, argument, None)) from error
        others = [each for each in Path(folder).iterdir() if each != temporary]
        for written in (*others, temporary):  # which may name the others: it comes last
            place = path.parent / written.name
            with _explained(place, argument):
                if is_special(place):
                    raise FileExistsError(errno.EEXIST, "a pipe or a device is there")
                _put(written, place)


def is_disk_full(error: BaseException) -> bool:
    """Return whether the system refused to write more, since the disk is full or a file would be too large."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remove_leftovers(*paths: Path) -> None:
    """Remove temporary files that killed processes left behind; no other process may be writing these paths."""
    for path in paths:
        form = re.compile(re.escape(_prefix(path.name)) + "[0-9a-f]{16}" + re.escape(_SUFFIX))
        for each in path.parent.iterdir():
            if form.fullmatch(each.name) and each.is_file() and not each.is_symlink():
                each.unlink(missing_ok=True)


def _prefix(name: str) -> str:
    return f".condconv-{name[:40]}-"  # a longer one may be too long with what is added


def _put(written: Path, path: Path) -> None:
    """Flush a file or a directory to the disk and move it over what is there; a file keeps the mode of that."""
    is_directory = written.is_dir()
    for each in [*written.rglob("*")] if is_directory else [written]:
        if each.is_file():
            with each.open("r+b") as file:
                os.fsync(file.fileno())
    if path.exists() and is_directory:  # which nothing can be renamed over: into the folder that is removed
        path.replace(written.with_name(f"{written.name}.before"))
    elif path.exists():
        shutil.copymode(path, written)
    written.replace(path)


@contextmanager
def _explained(path: Path, argument: str, size: int | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(_explain(path, error, argument, size)) from error


def _explain(path: Path, error: OSError, argument: str, size: int | None) -> str:
    named, of_size = shown_name(path), "" if size is None else f" of {size / 2**20:.1f} MiB"
    kept = f"the previous {shown_name(path.name)} is intact" if _is_there(path) else "nothing was written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk for {named}{of_size}; {kept}: free some, run again"
    if error.errno == errno.EFBIG:
        return (
            f"no file{of_size} may be written to {shown_name(path.parent)} (its file system, or a limit that "
            f"ulimit -f shows); {kept}: raise the limit, or write elsewhere"
        )
    return (
        f"`{argument}` must be where files can be written, got {named} ({error.strerror}); {kept}: take another "
        "directory or name"
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # of a directory that may not be looked into
        return False
