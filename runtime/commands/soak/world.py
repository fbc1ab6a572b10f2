"""The simulated clock of a soak, and its surroundings: temperature, a blocking sink, OSC controls.

In: a schedule of faults. Out: a ``Clock`` for the run, and the real time that the work of each tick took.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.clock import ManualClock
from runtime.commands.soak.faults import Fault, Lane
from runtime.commands.soak.records import Run, TickTimes
from runtime.endpoints import LOOPBACK
from runtime.machine.stop import Stop
from runtime.messages import Message
from runtime.show.controls import Controls
from runtime.sinks.osc import bundle

COOL_C, HOT_C, TRIP_C = 55.0, 93.0, 95.0  # normal, during heat, and where the machine would throttle
HEATING_C_PER_S = 2.0


class World:
    """A simulated clock that applies the faults of sink, machine and show as its time goes on.

    ``tick_s``: between two ticks. ``factor``: simulated seconds per second, None: as fast as possible.
    ``stop`` is set at ``duration_s``. ``controls``: the receiver of the show's OSC messages.
    """

    simulated = True

    def __init__(
        self,
        faults: Sequence[Fault],
        duration_s: float,
        tick_s: float,
        factor: float | None,
        stop: Stop,
        controls: Controls,
    ) -> None:
        self._clock, self._factor, self._stop, self._controls = ManualClock(), factor, stop, controls
        self._duration_s, self._tick_s = duration_s, tick_s
        self._lanes = {name: Lane(faults, name) for name in ("sink", "machine", "show")}
        self._temperature_c = COOL_C
        self._show_fault: Fault | None = None  # the show's fault at the last tick
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._began_s = self._tick_began_s = time.perf_counter()
        self.wall_s = 0.0
        self.sink_open = threading.Event()
        self.sink_open.set()
        self.ticks = 0
        # Real time and simulated time of each tick's work; -1: not reached. Written now, so that the
        # measurement is not taken for memory that grows.
        self.work_ms = np.full(round(duration_s / tick_s) + 2, -1.0, np.float32)
        self.times_s = np.full(len(self.work_ms), -1.0, np.float64)

    def now_s(self) -> float:
        return self._clock.now_s()

    def sleep_until(self, time_s: float, stop: threading.Event | None = None) -> None:
        """Begin the next tick at ``time_s``, with the faults of that time."""
        before_s, now_s = self._clock.now_s(), time.perf_counter()
        if 0 < self.ticks <= len(self.work_ms):
            self.work_ms[self.ticks - 1] = (now_s - self._tick_began_s) * 1000
            self.times_s[self.ticks - 1] = before_s
        self.ticks += 1
        if self._factor is not None:
            self._stop.wait(max(0.0, time_s / self._factor - (now_s - self._began_s)))
        self._clock.sleep_until(time_s, stop)
        if time_s >= self._duration_s:
            self._stop.set()
        self._apply_faults(before_s, time_s)
        self._tick_began_s = time.perf_counter()
        self.wall_s = self._tick_began_s - self._began_s

    def headroom_c(self) -> float:
        """Return the degrees until the machine would throttle."""
        return TRIP_C - self._temperature_c

    def run(self, failure: str | None) -> Run:
        """Return the record of the part that was run. ``failure``: the error that ended it."""
        hours, wall_s = round(self.now_s() / 3600, 5), round(self.wall_s, 1)
        return Run(hours=hours, wall_s=wall_s, moment_s=self._tick_s, failure=failure)

    def tick_times(self, deadline_ms: float, narrated_s: Sequence[float]) -> TickTimes:
        """Return the record of the work per tick.

        ``deadline_ms``: time between two ticks of a live run; ``narrated_s``: simulated times of the
        narrations.
        """
        done = self.work_ms >= 0
        work_ms, late_s = self.work_ms[done], self.times_s[done & (self.work_ms > deadline_ms)]
        return TickTimes(
            moments=len(work_ms),
            moment_ms=_spread(work_ms),
            deadline_ms=deadline_ms,
            missed=len(late_s),
            missed_narrating=int(np.isin(late_s.round(3), narrated_s).sum()),
        )

    def close(self) -> None:
        self.sink_open.set()
        self._socket.close()

    def _apply_faults(self, before_s: float, now_s: float) -> None:
        """Move the temperature, open or block the sink, and send the show's controls."""
        target_c = COOL_C if self._lanes["machine"].at(now_s) is None else HOT_C
        change_c = HEATING_C_PER_S * (now_s - before_s)
        self._temperature_c += min(max(target_c - self._temperature_c, -change_c), change_c)
        if self._lanes["sink"].at(now_s) is None:
            self.sink_open.set()
        else:
            self.sink_open.clear()
        before, fault = self._show_fault, self._lanes["show"].at(now_s)
        if fault is before:
            return
        self._show_fault = fault
        if before is not None and before.kind == "mute":
            self._send("/control/resume", 1)
        if fault is not None and fault.kind == "mute":
            self._send("/control/mute", 1)
        if fault is not None and fault.kind == "ignore audio":
            self._send("/control/ignore_audio", round(fault.end_s - now_s, 3))

    def _send(self, address: str, value: float) -> None:
        """Send a control over OSC and wait until it was received, so that soaks of a seed are the same."""
        before, deadline_s = self._controls.packets, time.monotonic() + 10
        self._socket.sendto(bundle([(address, value)]), (LOOPBACK, self._controls.port))
        while self._controls.packets == before and time.monotonic() < deadline_s:
            time.sleep(0.0005)


def _spread(work_ms: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    """Return p50, p99 and maximum of times (n,)."""
    if not len(work_ms):
        return 0.0, 0.0, 0.0
    p50, p99, longest = (round(float(value), 2) for value in np.percentile(work_ms, (50, 99, 100)))
    return p50, p99, longest


class SlowSink:
    """A sink that blocks while ``is_open`` is not set; its outbox drops what it cannot hold."""

    def __init__(self, is_open: threading.Event) -> None:
        self._is_open = is_open

    def publish(self, message: Message) -> None:
        while not self._is_open.wait(1.0):
            pass

    def close(self) -> None:
        """Nothing to close."""
