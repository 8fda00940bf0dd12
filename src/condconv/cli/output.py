"""Standard output that takes any text, and the error if it can no longer be written."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress

from condconv.errors import shown_name

_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG)


def prepare_output() -> None:
    """Let standard output and error take any text, and be there at all.

    What a terminal has no character for, such as ± in ASCII or a byte of a file's name, is written as its escape. A
    stream that was closed before the program began takes everything and keeps nothing: its number would otherwise go to
    the next file that is opened, which would get what is printed.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _point_to_nothing(number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", errors="backslashreplace"))
        elif number > 0 and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def path_line(path: object) -> str:
    """Return a path to print as a result: whole, since a program may read it, with control characters escaped."""
    return shown_name(path, 10_000)


def drop_output() -> None:
    """Let what standard output still holds go nowhere: it would be tried again when the program ends."""
    with suppress(OSError):  # a stream that is no file
        _point_to_nothing(sys.stdout.fileno())


def describe_refusal(error: OSError) -> tuple[str, int]:
    """Return what to say of an error that the system gave, and the exit status; output that it refuses is dropped."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        place = shown_name(os.fsdecode(error.filename))
        return f"`path` must be usable here, got {place} ({reason}): check the path and its permissions", 2
    if error.errno in _OF_OUTPUT:
        drop_output()
        return f"`stdout` must be writable, got {reason!r}: free some space, or redirect the output", 1
    return f"`condconv` must get the resources it requests, got {reason!r}: raise the limit, or request less", 1


def _point_to_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)
