"""Standard output that accepts any text, and the message if it cannot be written any more."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from condconv.errors import shown_name

if TYPE_CHECKING:
    from condconv.lab.saved import Evaluation

_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG)


def prepare_output() -> None:
    """Make standard output and error accept any text, even if they were closed before the program began.

    A character that the terminal does not have, such as ± in ASCII or a byte of a file's name, is written as its
    escape. What is written to a closed stream is discarded: otherwise its number would go to the next file that is
    opened, and the text into that file.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _point_to_nothing(number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", errors="backslashreplace"))
        elif number > 0 and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def path_line(path: object) -> str:
    """Return a path to print as a result: not shortened, since a program may read it, control characters escaped."""
    return shown_name(path, 10_000)


def change_of(before: Evaluation | None, after: Evaluation | None) -> str:
    """Return the accuracy of a network before and after it was changed, or that it was not measured."""
    if before is None or after is None:
        return "not measured: the images have no classes"
    was, now = 100 * before.top1, 100 * after.top1
    return f"{was:.2f} % -> {now:.2f} % ({now - was:+.2f} points, {after.images} images)"


def drop_output() -> None:
    """Discard what standard output still holds, which Python would otherwise try to write when the program ends."""
    with suppress(OSError):  # of a stream that is not a file
        _point_to_nothing(sys.stdout.fileno())


def describe_refusal(error: OSError) -> tuple[str, int]:
    """Return the message for an error of the system, and the exit status; output that it refuses is discarded."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        place = shown_name(os.fsdecode(error.filename))
        return f"`path` must be usable here, got {place} ({reason}): check the path and its permissions", 2
    if error.errno == errno.ENOENT:  # of Python's search for a temporary directory; all other files are named
        return f"`TMPDIR` must be a directory that can be written to, got {reason!r}: set it to one", 1
    if error.errno in _OF_OUTPUT:
        drop_output()
        return f"`stdout` must be writable, got {reason!r}: free some space, or redirect the output", 1
    return f"`condconv` must get the resources it requests, got {reason!r}: raise the limit, or request less", 1


def _point_to_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)
