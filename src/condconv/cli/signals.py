"""Signals of a scheduler or a closing terminal: the first ends a command as Ctrl-C does, the second at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_AGAIN = b"condconv: interrupted again: stopped at once; finished epochs are kept, and the same command resumes\n"


def _interrupt_main_thread() -> None:
    """Send SIGINT to the main thread: if another thread receives it, the main thread keeps waiting."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


class _Stop:
    """The handler of signals, for the process that created it and those that it forks."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._told = False
        self._hook = sys.unraisablehook

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raise `KeyboardInterrupt`; end the process at the second signal."""
        if os.getpid() != self._owner:  # a process that reads images: Ctrl-C reaches it too, but the owner answers
            if number != signal.SIGINT:
                os._exit(128 + number)
        elif self._told:
            os.write(2, _AGAIN)
            os._exit(130)
        else:
            self._told = True
            raise KeyboardInterrupt

    def notice(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt again if Python has dropped the exception, as it does in `__del__` and while it forks."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook(unraisable)
        elif os.getpid() == self._owner:
            self._told = False
            again = threading.Timer(0.1, _interrupt_main_thread)
            again.daemon = True
            again.start()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the block on SIGTERM and SIGHUP, so that they end a command as Ctrl-C does.

    A second signal ends the process immediately, since the first may have to wait for something. Forked processes leave
    Ctrl-C to this one and end immediately on the other signals.

    A signal that is ignored, as `nohup` leaves SIGHUP, stays so, and so does one whose handler is not Python's. Outside
    the main thread, which alone may receive signals, the block runs without handlers.
    """
    main = threading.current_thread() is threading.main_thread()
    handlers = {each: signal.getsignal(each) for each in (_SIGNALS if main else ())}
    taken = {each: handler for each, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    stop, hook = _Stop(), sys.unraisablehook
    for each in taken:
        signal.signal(each, stop.interrupt)
    if taken:
        sys.unraisablehook = stop.notice
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for each, handler in taken.items():
            signal.signal(each, handler)
