"""A run of an experiment in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import condconv

_GRACE = 20.0
"""Seconds that a run has to end by itself."""

# Python puts the working directory first in its path. A file there may have the name of a module that we import, so it
# is removed, and the package is found where it is installed, or where the parent process found it.
_PROGRAM = (
    "import sys; root = sys.argv.pop(1); sys.path[:] = [each for each in sys.path if each]; "
    "sys.path += [root] * (root not in sys.path); from condconv.cli.child import run; run()"
)


def command() -> list[str]:
    """Return what starts a process, to which a command's arguments are added; its stdin has to be a pipe from here."""
    return [sys.executable, "-c", _PROGRAM, str(Path(condconv.__file__).parents[1])]


def run() -> None:
    """Run the command of this process, and end when the process that started it does, however that ends."""
    threading.Thread(target=_watch, daemon=True).start()

    from condconv.__main__ import main

    sys.exit(main())


def _watch() -> None:
    """Wait for the end of stdin, whose other end the system closes with the process that holds it."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(143)
