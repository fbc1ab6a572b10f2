"""The pauses between what a device gives, and how long a pause may be before it means a fault.

In: the time of each frame, packet or block of sound. Out: a limit that follows the device's own rate, from
0.2 to 120 a second.
"""

from __future__ import annotations

import heapq
from collections import deque

# Longest pause that a working device makes: a frame every 5 s.
SLOWEST_S = 5.0
# Limit per usual pause: a single frame that got lost is no fault.
PAUSES = 2.5
# What comes faster was held back and came at once: no pause. So does what waited while a device was opened.
SHORTEST_S = 1 / 240
SETTLED_S = 1.0
# Pauses that are remembered, and the least number of them.
MEMORY_S = 20.0
ENOUGH = 3


class Rhythm:
    """The pauses of one device: no thread, no clock, no device."""

    def __init__(self, slowest_s: float = SLOWEST_S) -> None:
        """Begin without any pause known. ``slowest_s``: the longest that is believed; 0: none is usual."""
        self._slowest_s = slowest_s
        self._newest_s: float | None = None
        self._began_s = 0.0  # the first since the device was opened
        self._pauses: deque[tuple[float, float]] = deque()  # (its end, its length) in s
        self._usual_s: float | None = None  # None: to be computed

    def add(self, time_s: float) -> None:
        """Count something new at ``time_s``; a time before the newest one is ignored."""
        if self._newest_s is not None and time_s <= self._newest_s:
            return
        if self._newest_s is None:
            self._began_s = time_s
        elif time_s - self._newest_s > SHORTEST_S and time_s - self._began_s > SETTLED_S:
            self._pauses.append((time_s, time_s - self._newest_s))
            while len(self._pauses) > ENOUGH and self._pauses[0][0] < time_s - MEMORY_S:
                self._pauses.popleft()
            self._usual_s = None
        self._newest_s = time_s

    def interrupt(self) -> None:
        """Leave the pause that begins now out: the device is gone, or is opened again."""
        self._newest_s = None

    @property
    def usual_s(self) -> float:
        """The longest pause that is usual: the third longest of the last ``MEMORY_S``.

        So one freeze or two do not count, and a camera that turned slow, or that sends in bursts, is known
        after three pauses. A device of which fewer are known may be the slowest one.
        """
        if len(self._pauses) < ENOUGH:
            return self._slowest_s
        if self._usual_s is None:
            self._usual_s = heapq.nlargest(ENOUGH, (length for _, length in self._pauses))[-1]
        return min(self._usual_s, self._slowest_s)

    def limit_s(self, least_s: float) -> float:
        """Return the pause from which on a fault is certain, at least ``least_s``."""
        return max(least_s, PAUSES * self.usual_s)
