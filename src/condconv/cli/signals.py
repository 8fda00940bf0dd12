"""Being told to stop by a scheduler or a terminal that goes away, taken as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the block on SIGTERM and SIGHUP, so that they end a command as Ctrl-C does.

    A signal that is ignored, as `nohup` leaves SIGHUP, stays so, and so does one whose handler is not Python's. In
    another thread than the main one, which alone may take signals, the block runs as it is.
    """
    main = threading.current_thread() is threading.main_thread()
    handlers = {each: signal.getsignal(each) for each in (_SIGNALS if main else ())}
    taken = {each: handler for each, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for each in taken:
        signal.signal(each, _interrupt)
    try:
        yield
    finally:
        for each, handler in taken.items():
            signal.signal(each, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
