"""The runtime's one clock, and an audio device's sample count on it.

In: the machine's monotonic time, or a simulated one (``ManualClock``), and the arrival of each block of
samples. Out: seconds since the run began.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

WINDOW_S = 60  # of minima that the line is fitted to; one per second
SETTLED_MINIMA = 2  # from this many minima on a line is fitted, before that only an offset
SLEW_LIMIT = 1e-3  # s per s that the published time may depart from the nominal rate: 1 ms per s
SETTLING_SLEW_LIMIT = 0.1  # before a line is fitted: a first block 60 ms late is corrected within a second
SLEW_HORIZON_S = 1.0  # an error is corrected over this long, where the limit allows it


class Clock(Protocol):
    """Seconds since the run began. Safe to share between threads."""

    # The clock advances by ``sleep_until`` only: nothing waits for real time.
    simulated: bool

    def now_s(self) -> float: ...
    def sleep_until(self, time_s: float, stop: threading.Event | None = None) -> None:
        """Return at ``time_s`` (at once if that is past), or as soon as ``stop`` is set."""
        ...


class MonotonicClock:
    """Seconds since this clock was made, by the machine's monotonic clock."""

    simulated = False

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def now_s(self) -> float:
        return time.monotonic() - self._start_s

    def sleep_until(self, time_s: float, stop: threading.Event | None = None) -> None:
        while (left_s := time_s - self.now_s()) > 0:
            if stop is None:
                time.sleep(left_s)
            elif stop.wait(left_s):
                return


class ManualClock:
    """A simulated clock that advances only in ``sleep_until``, for ``--pace max`` and tests."""

    simulated = True

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._lock = threading.Lock()

    def now_s(self) -> float:
        with self._lock:
            return self._now_s

    def sleep_until(self, time_s: float, stop: threading.Event | None = None) -> None:
        """Set the clock to ``time_s``, unless that is past or ``stop`` is set."""
        if stop is not None and stop.is_set():
            return
        with self._lock:
            if time_s > self._now_s:
                self._now_s = time_s


@dataclass(frozen=True)
class _Knot:
    """A bend of the published line: sample ``index`` is at ``time_s``.

    ``rate``: seconds that pass per nominal second after it.
    """

    index: int
    time_s: float
    rate: float


class SampleClock:
    """Conversion of an audio device's sample count to the runtime's time. One thread owns it.

    The device's crystal is off by some ppm. A callback comes when the machine finds time for it: late, in
    bursts by tens of milliseconds, but never before its last sample was taken. So the true time is the
    lower envelope of ``arrival - count / rate`` over the count. Each second of audio leaves its minimum,
    and a line is fitted to those of the last ``WINDOW_S`` seconds. The slope is the median of all pairs'
    slopes, the offset the median of the residuals (Theil 1950, Sen 1968). A quarter of the minima may be
    wrong by any amount and to either side. The edge of the convex hull would fit late blocks more closely,
    but a sound server that delivers its first buffers at once tilts it for a minute. Before two minima
    exist the offset is the smallest delay seen, and the slope is 0.

    ``time_of`` does not jump to a new line. What it publishes is continuous and piecewise linear, bends
    towards the line, and never departs from the nominal rate by more than ``SLEW_LIMIT``
    (``SETTLING_SLEW_LIMIT`` before two minima exist). So it increases strictly, and the time of a sample
    that was pushed does not change in the next ``WINDOW_S`` seconds of audio. A device that is further off
    than the limit is not followed; ``drift_ppm`` reports it. A gap in the samples breaks the count: call
    ``reset`` then. A constant latency of the device cannot be measured here.
    """

    def __init__(self, rate_hz: float) -> None:
        """Start at sample 0. Raises ValueError unless ``rate_hz``, the nominal rate, is positive."""
        if not rate_hz > 0:
            raise ValueError(f"rate_hz must be positive, got {rate_hz}")
        self.rate_hz = rate_hz
        self.reset()

    def reset(self) -> None:
        """Restart at sample 0, after the stream was reopened or samples were lost."""
        self._count = 0
        self._slope = 0.0  # s per s
        self._offset_s = float("inf")
        self._minima: deque[tuple[float, float]] = deque(maxlen=WINDOW_S)  # (nominal time, delay) in s
        self._lowest: tuple[float, float] | None = None  # minimum of the current second
        self._knots: list[_Knot] = []

    @property
    def drift_ppm(self) -> float:
        """Excess length of the device's second over the runtime's, in parts per million.

        0 in the first two seconds, rough in the next few, good to a few ppm after a minute.
        """
        return self._slope * 1e6

    def push(self, n_samples: int, arrival_s: float) -> None:
        """Count a block of ``n_samples`` (at least 1) that arrived at ``arrival_s`` on the run's clock."""
        assert n_samples > 0, n_samples
        assert math.isfinite(arrival_s), arrival_s
        self._count += n_samples
        nominal_s = self._count / self.rate_hz
        new_line = self._add(nominal_s, arrival_s - nominal_s)
        if not self._knots:
            self._knots.append(_Knot(self._count, arrival_s, 1.0))
        elif new_line:
            self._bend(nominal_s, n_samples / self.rate_hz)

    def time_of(self, sample_index: int) -> float:
        """Return the time at which sample ``sample_index`` (from 0) began, in seconds.

        For samples not pushed yet it is a forecast. It must not be called before the first push.
        """
        assert self._knots, "time_of was called before the first push"
        position = max(self._knot_at(sample_index), 0)  # before the first: its line, extended backwards
        knot = self._knots[position]
        return knot.time_s + (sample_index - knot.index) / self.rate_hz * knot.rate

    def _add(self, nominal_s: float, delay_s: float) -> bool:
        """Add a delay to the envelope; return True when the line may have changed."""
        lowest = self._lowest
        second_over = lowest is not None and int(nominal_s) > int(lowest[0])
        if lowest is not None and second_over:
            self._minima.append(lowest)
        if lowest is None or second_over or delay_s < lowest[1]:
            self._lowest = (nominal_s, delay_s)
        if len(self._minima) < SETTLED_MINIMA:
            self._offset_s = min(self._offset_s, delay_s)
            return True
        if second_over:
            self._slope, self._offset_s = fit_line(self._minima)
        return second_over

    def _knot_at(self, sample_index: int) -> int:
        """Return the position of the last knot at or before a sample; -1 before the first."""
        return bisect_right(self._knots, sample_index, key=lambda knot: knot.index) - 1

    def _bend(self, nominal_s: float, block_s: float) -> None:
        """Bend the published line towards the fitted one, from the newest sample on."""
        now_s = self.time_of(self._count)
        error_s = nominal_s + self._offset_s + self._slope * nominal_s - now_s
        settling = len(self._minima) < SETTLED_MINIMA
        limit = SETTLING_SLEW_LIMIT if settling else SLEW_LIMIT
        horizon_s = block_s if settling else max(SLEW_HORIZON_S, block_s)
        bend = min(max(self._slope + error_s / horizon_s, -limit), limit)
        self._knots.append(_Knot(self._count, now_s, 1 + bend))
        del self._knots[: max(self._knot_at(self._count - int(WINDOW_S * self.rate_hz)), 0)]


def fit_line(points: deque[tuple[float, float]]) -> tuple[float, float]:
    """Return slope and offset of the Theil–Sen line through at least two (x, y) with distinct x."""
    x, y = np.array(points).T  # (n,) each
    first, second = np.triu_indices(len(x), 1)  # (n (n - 1) / 2,)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return slope, float(np.median(y - slope * x))
