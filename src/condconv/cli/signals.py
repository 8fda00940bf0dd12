"""Being told to stop by a scheduler or a terminal that goes away, taken as Ctrl-C; told again, at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_AGAIN = b"condconv: interrupted again: stopped at once; finished epochs are kept, the same command resumes\n"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the block on SIGTERM and SIGHUP, so that they end a command as Ctrl-C does.

    A second signal ends the process at once: the first may be waiting for something. Processes that were forked, which
    read images, leave Ctrl-C to this one and end at once on the others.

    A signal that is ignored, as `nohup` leaves SIGHUP, stays so, and so does one whose handler is not Python's. In
    another thread than the main one, which alone may take signals, the block runs as it is.
    """
    main = threading.current_thread() is threading.main_thread()
    handlers = {each: signal.getsignal(each) for each in (_SIGNALS if main else ())}
    taken = {each: handler for each, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    owner, received = os.getpid(), 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if os.getpid() != owner:
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        received += 1
        if received > 1:
            os.write(2, _AGAIN)
            os._exit(130)
        raise KeyboardInterrupt

    for each in taken:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in taken.items():
            signal.signal(each, handler)
