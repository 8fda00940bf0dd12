"""Shortages of the machine while images are read, in one sentence with the remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from condconv.errors import TrainingError

_HANDLES = "too few file handles for the processes that read images: raise the limit (ulimit -n 65536)"
_MEMORY = "too little memory: free some, lower --batch-size"
_GPU = "too little memory on the GPU: free some, give train more --grad-accumulation, lower --batch-size elsewhere"
_SHARED = "too little shared memory for the processes that read images: give more (docker run --shm-size 8g)"
_ENDED = "a process that reads images ended before its time ({0}), mostly for lack of memory: free some"
_HANDLES_OF_A_WORKER = 7  # two ends of its queue of orders, one to see it end, and those of two batches that wait
_HANDLES_INSIDE = 16  # what a worker opens itself: images, memory that is shared, sockets

# Errors of the system come with a number, those of torch's loader with a text only.
_NUMBERS = {errno.EMFILE: _HANDLES, errno.ENFILE: _HANDLES, errno.ENOMEM: _MEMORY, errno.EAGAIN: _MEMORY}
_TEXTS = {
    "Too many open files": _HANDLES,
    "ancdata": _HANDLES,  # handles that came without their numbers
    "shared memory": _SHARED,
    "Cannot allocate memory": _MEMORY,
    "out of memory": _GPU,
    "DataLoader worker": _ENDED,
}


class ShortageError(TrainingError):
    """The machine has too little memory, or too few file handles, for what was requested."""


def shortage(error: BaseException) -> str | None:
    """Return what the machine lacks and what to do, or None for an error of another kind."""
    found: str | None
    if isinstance(error, MemoryError):
        found = _MEMORY
    elif isinstance(error, OSError):
        found = _NUMBERS.get(error.errno or 0)
    else:
        found = next((sentence for text, sentence in _TEXTS.items() if text in str(error)), None)
    workers = "" if found == _GPU else ", or give fewer --workers"
    return found and f"{found.format(_ending(error))}{workers}, and run the same command again"


def check_handles(workers: int) -> None:
    """Check that this many worker processes can be started; torch's own error would be many lines.

    Raises:
        ShortageError: There are too few file handles.
    """
    needed = _HANDLES_OF_A_WORKER * workers + (_HANDLES_INSIDE if workers else 0)
    held: list[int] = []
    try:
        with shortages_explained():
            held.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(needed))
    finally:
        for each in held:
            os.close(each)


@contextmanager
def shortages_explained() -> Iterator[None]:
    """Name the resource that the machine lacks if torch or the system fail without it.

    torch notices a worker that ended at any moment, also between batches: this belongs around all work on them.

    Raises:
        ShortageError: In place of such an error; others pass.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        sentence = None if isinstance(error, TrainingError) else shortage(error)
        if sentence is None:
            raise
        raise ShortageError(sentence) from error


def _ending(error: BaseException) -> str:
    """Return how a worker ended, from torch's error or the one before it."""
    return f"{error} {error.__cause__}".partition("killed by signal: ")[2].split(".")[0].strip() or "exited"
