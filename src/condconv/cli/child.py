"""A run of an experiment in a separate process, which ends when its parent process does."""

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

# Python puts the working directory first in its path. A file there may have the name of a module that is imported, so
# it is removed; the package is found where it is installed, or where the parent process found it.
_PROGRAM = (
    "import sys; root = sys.argv.pop(1); sys.path[:] = [each for each in sys.path if each]; "
    "sys.path += [root] * (root not in sys.path); from condconv.cli.child import run; run()"
)


def command() -> list[str]:
    """Return the start of a command line, to which the arguments of a command are added; its stdin must be a pipe."""
    return [sys.executable, "-c", _PROGRAM, str(Path(condconv.__file__).parents[1])]


def run() -> None:
    """Run the command of this process; end when its parent process ends, in whatever way."""
    threading.Thread(target=_watch, daemon=True).start()

    from condconv.__main__ import main

    sys.exit(main())


def _watch() -> None:
    """Wait until stdin is closed, which the system does when the parent process ends; then end this process."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(143)
