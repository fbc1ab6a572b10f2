"""How a run is asked to end, or to read its configuration again: by signals."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator


class Stop(threading.Event):
    """Set by SIGINT and SIGTERM; ``signal`` says which, 0 while none came. ``reload`` is set by SIGHUP."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = 0
        self.reload = threading.Event()


@contextlib.contextmanager
def signals() -> Generator[Stop]:
    """The first signal asks the loop to end; a second one ends the process at once."""
    stop = Stop()

    def handle(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            stop.reload.set()
            return
        stop.signal = number
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
