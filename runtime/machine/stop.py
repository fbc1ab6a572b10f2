"""Signals that ask a run to end, or to read its configuration again.

SIGHUP has two meanings: an operator asks for the configuration to be read again, or the terminal in which
the run was started was closed. After the second one the process has no terminal.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Generator


class Stop(threading.Event):
    """An event that SIGINT, SIGTERM and the end of the terminal set.

    ``signal``: the number of the signal, 0 before one came. ``reload``: an event that any other SIGHUP sets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal = 0
        self.reload = threading.Event()


@contextlib.contextmanager
def signals() -> Generator[Stop]:
    """Handle signals within the block: the first asks the run to end, a second ends the process at once.

    A process that ignores SIGHUP (``nohup``) outlives its terminal. Outside the main thread, where signals
    cannot be handled, nothing sets the ``Stop``.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ends_with_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    # A handler interrupts the main thread anywhere, within ``Event.wait`` too, which may hold the lock that
    # ``Event.set`` takes: a thread of its own sets the events. ``SimpleQueue.put`` may interrupt anything.
    arrived: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
    setter = threading.Thread(target=_set_events, args=(arrived,), name="signals", daemon=True)

    def handle(number: int, _: object) -> None:
        hung_up = number == signal.SIGHUP and ends_with_terminal and not _has_terminal()
        if number == signal.SIGHUP and not hung_up:
            arrived.put(stop.reload)
            return
        stop.signal = number
        arrived.put(stop)
        if hung_up:  # kernel and shell may each send a signal, and the second would end the process at once
            previous[signal.SIGHUP] = signal.SIG_IGN
        signal.signal(number, signal.SIG_IGN if hung_up else signal.SIG_DFL)

    setter.start()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        arrived.put(None)
        setter.join()


def _set_events(arrived: queue.SimpleQueue[threading.Event | None]) -> None:
    while (event := arrived.get()) is not None:
        event.set()


def _has_terminal() -> bool:
    """Return True while the process has a controlling terminal that was not hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
