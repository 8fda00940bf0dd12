"""Being told to stop by a scheduler or a terminal that goes away, taken as Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the block on SIGTERM and SIGHUP, so that they end a command as Ctrl-C does.

    A signal that is ignored, as `nohup` leaves SIGHUP, stays so.
    """
    taken = {each: handler for each in _SIGNALS if (handler := signal.getsignal(each)) is not signal.SIG_IGN}
    for each in taken:
        signal.signal(each, _interrupt)
    try:
        yield
    finally:
        for each, handler in taken.items():
            signal.signal(each, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
