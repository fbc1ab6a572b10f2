"""When the narrator may speak: its pace is given up long before perception's is.

Pure, but for ``read_thermal_zones``. In: once a moment, perception's newest latency, how many moments were dropped, how far the machine is
from throttling, and whether a sentence is being made. Out: whether the next one may be asked for now; ``state`` for the status; and perception's
p99 with and without narration.

Under pressure the interval between sentences doubles, up to ``SLOWEST`` times, and then narration stops. Each step back takes a calm of
``CALM_S``; where pressure came back within that time of a step, the next one takes twice as long, so that perception is not disturbed
twice a minute for weeks to find out. ``LONGEST_CALM_S`` without pressure forgives.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

WINDOW_S = 10.0  # of latencies that are looked at
LEAST_LATENCIES = 10  # fewer say nothing about the 95th percentile
PRESSED_SHARE, CALM_SHARE = (
    0.5,
    0.35,
)  # of a frame hop: perception's p95 above the one is pressure, below the other calm
PRESSED_HEADROOM_C, CALM_HEADROOM_C = 5.0, 10.0  # degrees below the trip point
SLOWEST = 8  # times the interval; slower than that is off
REACT_S = 5.0  # between two slowdowns: the first must have time to show
CALM_S, LONGEST_CALM_S = 30.0, 1800.0
KEPT_LATENCIES = 4096  # for the p99 of each kind: seven minutes at ten readings a second
_EPSILON_S = 1e-6
_THROTTLES = ("passive", "hot", "critical")  # "active" trip points start a fan, and that is fine


# --- temperature ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThermalZone:
    """``trip_c``: where the kernel begins to throttle (or to shut down), None where the zone names no such point."""

    name: str
    temperature_c: float
    trip_c: float | None


def read_thermal_zones(folder: Path = Path("/sys/class/thermal")) -> tuple[ThermalZone, ...]:
    """The zones that can be read. Missing files are normal: containers have none, and a sensor that sleeps gives an error."""
    zones: list[ThermalZone] = []
    for zone in sorted(folder.glob("thermal_zone*")):
        temperature_c = _degrees(zone / "temp")
        if temperature_c is not None:
            name = (_text(zone / "type") or zone.name).strip()
            zones.append(ThermalZone(name, temperature_c, _trip_c(zone)))
    return tuple(zones)


def thermal_headroom_c(zones: Sequence[ThermalZone]) -> float | None:
    """Degrees until the first zone throttles; None where nobody knows."""
    return min((zone.trip_c - zone.temperature_c for zone in zones if zone.trip_c is not None), default=None)


def _trip_c(zone: Path) -> float | None:
    trips_c: list[float] = []
    for file in zone.glob("trip_point_*_type"):
        trip_c = _degrees(file.with_name(re.sub("type$", "temp", file.name)))
        # 0 and below: a point that is not set
        if (_text(file) or "").strip() in _THROTTLES and trip_c is not None and trip_c > 0:
            trips_c.append(trip_c)
    return min(trips_c, default=None)


def _degrees(file: Path) -> float | None:
    try:
        return int(_text(file) or "") / 1000
    except ValueError:
        return None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return None


# --- the governor -----------------------------------------------------------------------------------------------------


class Governor:
    """``every_s``: the interval of narrations when all is well, 0 for none at all; ``frame_hop_s``: perception's budget. The first
    narration is due one interval after time 0."""

    def __init__(self, every_s: float, frame_hop_s: float) -> None:
        self._every_s, self._hop_ms = every_s, frame_hop_s * 1000
        self._factor = 1  # of the interval; above SLOWEST: off
        self._asked_s = 0.0
        self._slowed_s = self._recovered_s = float("-inf")  # the last step slower, and faster
        self._calm_since_s, self._calm_needed_s = 0.0, CALM_S
        self._dropped = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=1024)  # time, latency in ms
        self._kept: dict[bool, deque[float]] = {
            narrating: deque(maxlen=KEPT_LATENCIES) for narrating in (True, False)
        }

    @property
    def state(self) -> Literal["on", "slowed", "off"]:
        if self._every_s <= 0 or self._factor > SLOWEST:
            return "off"
        return "on" if self._factor == 1 else "slowed"

    def step(
        self, now_s: float, latency_ms: float | None, dropped_moments: int, headroom_c: float | None, narrating: bool
    ) -> bool:  # fmt: skip
        """Once a moment. ``latency_ms``: of the reading that was just made, None without one; ``dropped_moments``: in total so far;
        ``headroom_c``: see ``thermal_headroom_c``. True: ask for a narration now; its interval then begins anew."""
        if latency_ms is not None:
            self._recent.append((now_s, latency_ms))
            self._kept[narrating].append(latency_ms)
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()
        dropped, self._dropped = dropped_moments > self._dropped, dropped_moments
        self._adjust(now_s, dropped, headroom_c)
        due = now_s >= self._asked_s + self._every_s * self._factor - _EPSILON_S
        if self.state == "off" or narrating or not due:
            return False
        self._asked_s = now_s
        return True

    def latency_p99_ms(self) -> tuple[float | None, float | None]:
        """Perception's 99th percentile over its newest readings: while a narration was made, and while none was."""
        with_narration, without = (
            float(np.percentile(kept, 99)) if kept else None for kept in (self._kept[True], self._kept[False])
        )
        return with_narration, without

    def _adjust(self, now_s: float, dropped: bool, headroom_c: float | None) -> None:
        """One step slower at once under pressure, one step faster after a long calm."""
        share = self._latency_share()
        pressed = (
            dropped or share > PRESSED_SHARE or (headroom_c is not None and headroom_c < PRESSED_HEADROOM_C)
        )
        calm = not pressed and share < CALM_SHARE and (headroom_c is None or headroom_c > CALM_HEADROOM_C)
        if not calm:
            self._calm_since_s = now_s
        if pressed and self._factor <= SLOWEST and now_s - self._slowed_s >= REACT_S - _EPSILON_S:
            if now_s - self._recovered_s < self._calm_needed_s:
                self._calm_needed_s = min(2 * self._calm_needed_s, LONGEST_CALM_S)
            elif now_s - self._slowed_s > LONGEST_CALM_S:
                self._calm_needed_s = CALM_S
            self._slowed_s, self._recovered_s = now_s, float("-inf")
            self._change(self._factor * 2)
        elif self._factor > 1 and now_s - self._calm_since_s >= self._calm_needed_s - _EPSILON_S:
            self._recovered_s = self._calm_since_s = now_s
            self._change(self._factor // 2)

    def _latency_share(self) -> float:
        """Perception's p95 as a share of the frame hop; 0 while too little is known."""
        if len(self._recent) < LEAST_LATENCIES:
            return 0.0
        return float(np.percentile([latency_ms for _, latency_ms in self._recent], 95)) / self._hop_ms

    def _change(self, factor: int) -> None:
        """What was measured at the old pace does not count for the new one."""
        self._factor = factor
        self._recent.clear()
