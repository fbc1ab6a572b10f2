"""What changes around a soak as its simulated time goes on: temperature, a sink that blocks, a show that asks for silence.

In: a schedule of faults. Out: a ``Clock`` for the run, and what a moment's work took in real time.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import numpy as np

from runtime.clock import ManualClock
from runtime.config import LOOPBACK
from runtime.controls import Controls
from runtime.faults import Fault, Lane
from runtime.messages import Message
from runtime.sinks.osc import bundle
from runtime.stop import Stop

COOL_C, HOT_C, TRIP_C = 55.0, 93.0, 95.0  # the machine's temperature, and where it would throttle
HEATING_C_PER_S = 2.0


class World:
    """The simulated clock, and what changes as it goes on: temperature, a sink that blocks, a show that asks for silence.

    ``factor``: simulated seconds per second, None: as fast as it goes. The run is asked to stop at ``duration_s``.
    """

    def __init__(
        self, faults: Sequence[Fault], duration_s: float, moment_s: float, factor: float | None, stop: Stop, controls: Controls
    ) -> None:  # fmt: skip
        self._clock, self._factor, self._stop, self._controls = ManualClock(), factor, stop, controls
        self._duration_s = duration_s
        self._lanes = {name: Lane(faults, name) for name in ("sink", "machine", "show")}
        self._temperature_c = COOL_C
        self._asked: Fault | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._began_s = self._turned_s = time.perf_counter()
        self.wall_s = 0.0
        self.sink_open = threading.Event()
        self.sink_open.set()
        self.moments = 0
        # filled now, so that writing it does not look like memory that grows
        self.work_ms = np.full(round(duration_s / moment_s) + 2, -1.0, np.float32)
        self.times_s = np.full(len(self.work_ms), -1.0, np.float64)

    def now_s(self) -> float:
        return self._clock.now_s()

    def sleep_until(self, time_s: float, stop: threading.Event | None = None) -> None:
        """The next moment begins, and the world is as it is then."""
        before_s, now_s = self._clock.now_s(), time.perf_counter()
        if 0 < self.moments <= len(self.work_ms):
            self.work_ms[self.moments - 1] = (now_s - self._turned_s) * 1000
            self.times_s[self.moments - 1] = before_s
        self.moments += 1
        if self._factor is not None:
            self._stop.wait(max(0.0, time_s / self._factor - (now_s - self._began_s)))
        self._clock.sleep_until(time_s, stop)
        if time_s >= self._duration_s:
            self._stop.set()
        self._play(before_s, time_s)
        self._turned_s = time.perf_counter()
        self.wall_s = self._turned_s - self._began_s

    def headroom_c(self) -> float:
        return TRIP_C - self._temperature_c

    def close(self) -> None:
        self.sink_open.set()
        self._socket.close()

    def _play(self, before_s: float, now_s: float) -> None:
        target_c = COOL_C if self._lanes["machine"].at(now_s) is None else HOT_C
        change_c = HEATING_C_PER_S * (now_s - before_s)
        self._temperature_c += min(max(target_c - self._temperature_c, -change_c), change_c)
        if self._lanes["sink"].at(now_s) is None:
            self.sink_open.set()
        else:
            self.sink_open.clear()
        asked, self._asked = self._asked, self._lanes["show"].at(now_s)
        if asked is self._asked:
            return
        if asked is not None and asked.kind == "mute":
            self._ask("/control/resume", 1)
        if self._asked is not None and self._asked.kind == "mute":
            self._ask("/control/mute", 1)
        if self._asked is not None and self._asked.kind == "ignore audio":
            self._ask("/control/ignore_audio", round(self._asked.end_s - now_s, 3))

    def _ask(self, address: str, value: float) -> None:
        """As a show does, over OSC; and waits until it has come, so that two soaks of a seed are the same."""
        before, deadline_s = self._controls.packets, time.monotonic() + 10
        self._socket.sendto(bundle([(address, value)]), (LOOPBACK, self._controls.port))
        while self._controls.packets == before and time.monotonic() < deadline_s:
            time.sleep(0.0005)


class SlowSink:
    """A sink that blocks while the world says so, behind an outbox that drops what it cannot hold."""

    def __init__(self, is_open: threading.Event) -> None:
        self._is_open = is_open

    def publish(self, message: Message) -> None:
        while not self._is_open.wait(1.0):
            pass

    def close(self) -> None:
        """Nothing to close."""
