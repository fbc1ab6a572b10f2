"""The governor: the pace of narrations, which slows down long before perception does.

Pure: no threads and no clock of its own. In, once a tick: perception's newest latency, the number of dropped
ticks, the degrees until the machine throttles, and whether a narration is being made. Out: whether the next
narration is due now, ``state`` for the status, and perception's p99 with and without narration.

Under pressure the interval between narrations doubles, up to ``SLOWEST`` times, and then narration stops.
Each step back needs ``CALM_S`` without pressure. If pressure returned within that time of a step back,
the next one needs twice as long, so that perception is not disturbed twice a minute for weeks. After
``LONGEST_CALM_S`` without pressure the wait is ``CALM_S`` again.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import numpy as np

from vaemotion.contract.windows import EPSILON_S

WINDOW_S = 10.0  # of the latencies in the 95th percentile
LEAST_LATENCIES = 10  # fewer give no 95th percentile
PRESSED_SHARE = 0.5  # of a frame hop: perception's p95 above it is pressure
CALM_SHARE = 0.35  # of a frame hop: perception's p95 below it is calm
PRESSED_HEADROOM_C, CALM_HEADROOM_C = 5.0, 10.0  # degrees below the trip point
SLOWEST = 8  # times the interval; slower than that is off
REACT_S = 5.0  # between two slowdowns: the first must have time to take effect
CALM_S, LONGEST_CALM_S = 30.0, 1800.0
KEPT_LATENCIES = 4096  # for the p99 of each kind: seven minutes at ten readings a second


class Governor:
    """The pace of narrations over one run."""

    def __init__(self, every_s: float, frame_hop_s: float) -> None:
        """Start at full pace; the first narration is due one interval after time 0.

        ``every_s``: interval between narrations without pressure, 0 for none at all; ``frame_hop_s``:
        perception's time budget per reading.
        """
        self._every_s, self._hop_ms = every_s, frame_hop_s * 1000
        self._factor = 1  # of the interval; above SLOWEST: off
        self._asked_s = 0.0
        self._slowed_s = self._recovered_s = float("-inf")  # times of the last step slower, and faster
        self._calm_since_s, self._calm_needed_s = 0.0, CALM_S
        self._dropped = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=1024)  # time, latency in ms
        self._kept: dict[bool, deque[float]] = {
            narrating: deque(maxlen=KEPT_LATENCIES) for narrating in (True, False)
        }

    @property
    def state(self) -> Literal["on", "slowed", "off"]:
        """The narrator's state for a ``Status``."""
        if self._every_s <= 0 or self._factor > SLOWEST:
            return "off"
        return "on" if self._factor == 1 else "slowed"

    def step(
        self,
        now_s: float,
        latency_ms: float | None,
        dropped_ticks: int,
        headroom_c: float | None,
        narrating: bool,
    ) -> bool:
        """Update the pace once a tick; return True when a narration is due, whose interval then restarts.

        ``latency_ms``: of the reading that was just made, None without one; ``dropped_ticks``: in total
        so far; ``headroom_c``: see ``thermal_headroom_c``; ``narrating``: a narration is being made.
        """
        if latency_ms is not None:
            self._recent.append((now_s, latency_ms))
            self._kept[narrating].append(latency_ms)
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()
        dropped, self._dropped = dropped_ticks > self._dropped, dropped_ticks
        self._adjust(now_s, dropped, headroom_c)
        due = now_s >= self._asked_s + self._every_s * self._factor - EPSILON_S
        if self.state == "off" or narrating or not due:
            return False
        self._asked_s = now_s
        return True

    def latency_p99_ms(self) -> tuple[float | None, float | None]:
        """Return perception's p99 over its newest readings, with and without a narration being made."""
        with_narration, without = (
            float(np.percentile(kept, 99)) if kept else None for kept in (self._kept[True], self._kept[False])
        )
        return with_narration, without

    def _adjust(self, now_s: float, dropped: bool, headroom_c: float | None) -> None:
        """Slow down by one step under pressure, or speed up by one step after a long calm."""
        share = self._latency_share()
        pressed = (
            dropped or share > PRESSED_SHARE or (headroom_c is not None and headroom_c < PRESSED_HEADROOM_C)
        )
        calm = not pressed and share < CALM_SHARE and (headroom_c is None or headroom_c > CALM_HEADROOM_C)
        if not calm:
            self._calm_since_s = now_s
        if pressed and self._factor <= SLOWEST and now_s - self._slowed_s >= REACT_S - EPSILON_S:
            if now_s - self._recovered_s < self._calm_needed_s:
                self._calm_needed_s = min(2 * self._calm_needed_s, LONGEST_CALM_S)
            elif now_s - self._slowed_s > LONGEST_CALM_S:
                self._calm_needed_s = CALM_S
            self._slowed_s, self._recovered_s = now_s, float("-inf")
            self._change(self._factor * 2)
        elif self._factor > 1 and now_s - self._calm_since_s >= self._calm_needed_s - EPSILON_S:
            self._recovered_s = self._calm_since_s = now_s
            self._change(self._factor // 2)

    def _latency_share(self) -> float:
        """Return perception's p95 as a share of the frame hop; 0 from too few latencies."""
        if len(self._recent) < LEAST_LATENCIES:
            return 0.0
        return float(np.percentile([latency_ms for _, latency_ms in self._recent], 95)) / self._hop_ms

    def _change(self, factor: int) -> None:
        """Change the interval, and drop the latencies that were measured at the old one."""
        self._factor = factor
        self._recent.clear()
