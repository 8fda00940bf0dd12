import signal
import threading
import time

import pytest

from condconv.cli.signals import stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_block_as_ctrl_c_does_and_nothing_after_it(number):
    before = signal.signal(number, signal.SIG_DFL)  # it is ignored in what nohup started
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_an_interrupt_that_python_drops_is_told_again():
    class Swallows:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def work():
        Swallows()
        time.sleep(20)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell left behind
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            work()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_runs_in_another_thread_and_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def command():
        with stopped_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert seen == [before]
