"""A lock: one process, or one group of processes, at a time in a run's directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from condconv.errors import UsageError, shown_name
from condconv.files.paths import make_directory

NAME = ".lock"


@contextmanager
def only_here(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a run's directory, which is created if necessary, against other runs.

    The operating system lets go of it when the process ends, however it does. Of several processes of one run the
    first holds it. A directory in which nothing was left is removed.

    Args:
        out: The directory.
        wait: Whether to wait for another run in it.

    Raises:
        UsageError: It cannot be made, or another run is using it and `wait` is false.
    """
    if os.environ.get("RANK", "0") != "0":  # torchrun's and accelerate's number of this process
        yield
        return
    make_directory(out)
    try:
        lock = FileLock(out / NAME, timeout=-1 if wait else 0)
        lock.acquire()
        out.mkdir(exist_ok=True)  # a run that was waited for may have left nothing
    except Timeout:
        raise UsageError(
            f"`out` must be a directory that no other run is using, got {shown_name(out)}: wait for that run, or "
            "give another --out"
        ) from None
    except OSError as error:
        raise UsageError(
            f"`out` must be a directory to write in, got {shown_name(out)} ({error.strerror}): check its permissions "
            f"and what is called {NAME} in it, or give another --out"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # it is gone, or another run has put something there this moment
            if [each.name for each in out.iterdir()] == [NAME]:
                (out / NAME).unlink()  # while it is held: who waits for it finds that it is gone
                out.rmdir()
        lock.release()
