"""A sink behind a queue and a thread of its own, so that a slow or failing sink never slows perception."""

from __future__ import annotations

import threading
from typing import Literal, Protocol

from runtime.losses import Losses
from runtime.mailbox import BoundedQueue, Closed
from runtime.messages import Message
from runtime.stage_times import StageTimes

CAPACITY = 512  # messages: about half a minute of readings


class Sink(Protocol):
    """A receiver of messages, one at a time, on one thread."""

    def publish(self, message: Message) -> None: ...
    def close(self) -> None: ...


class Outbox:
    """A sink behind a queue and a thread of its own.

    ``when_full``: "drop-oldest" (counted) in real time, "wait" where nothing may be lost. In real time a
    message that the sink cannot write, because the disk is full or gone, is lost (``losses``) and the next
    one is tried. Once ``stop`` is set nothing waits any more: a terminal or a pipe that nobody reads must not
    keep a run from ending.
    """

    def __init__(
        self, name: str, sink: Sink, when_full: Literal["wait", "drop-oldest"], stop: threading.Event
    ) -> None:
        self.name = name
        self._stop = stop
        self._sink = sink
        self._queue: BoundedQueue[Message] = BoundedQueue(CAPACITY, when_full)
        self.times = StageTimes()
        self.losses = Losses(f"messages to {name}")
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._deliver, name=f"sink {name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of messages that waited too long, were not written, or were left out by the sink."""
        return self._queue.dropped + self.losses.count + getattr(self._sink, "dropped", 0)

    @property
    def deepest(self) -> int:
        """Largest number of messages that ever waited."""
        return self._queue.deepest

    def put(self, message: Message) -> None:
        """Queue a message. Raises the error that made the sink fail."""
        while True:
            if self._error is not None:
                raise self._error
            if self._queue.put(message, timeout_s=0.2) or self._stop.is_set():
                return

    def close(self, timeout_s: float = 1.0) -> None:
        """Deliver the queued messages and close the sink.

        Where nothing may be lost, that takes as long as the sink does; in real time, and once ``stop`` is
        set, at most ``timeout_s``. Raises the error that made the sink fail.
        """
        self._queue.close()
        while self._queue.when_full == "wait" and self._thread.is_alive() and not self._stop.is_set():
            self._thread.join(0.2)
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error

    def _deliver(self) -> None:
        try:
            while True:
                message = self._queue.take(timeout_s=0.5)
                if message is not None:
                    self._publish(message)
        except Closed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._sink.close()

    def _publish(self, message: Message) -> None:
        try:
            with self.times.measure(f"sink {self.name}"):
                self._sink.publish(message)
        except OSError as error:
            if self._queue.when_full == "wait":
                raise
            self.losses.add(error.strerror or str(error))
        else:
            self.losses.end()
