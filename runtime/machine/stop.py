"""Signals that ask a run to end, or to read its configuration again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator


class Stop(threading.Event):
    """An event that SIGINT and SIGTERM set.

    ``signal``: the number of the signal, 0 before one came. ``reload``: an event that SIGHUP sets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal = 0
        self.reload = threading.Event()


@contextlib.contextmanager
def signals() -> Generator[Stop]:
    """Handle signals within the block: the first asks the run to end, a second ends the process at once.

    Outside the main thread, where signals cannot be handled, nothing sets the ``Stop``.
    """
    stop = Stop()

    def handle(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            stop.reload.set()
            return
        stop.signal = number
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
