"""The soak's own sink: what a run publishes, judged against what the simulated devices know to be true.

In: every message of a run, on one thread, in order. Out: counts, a hash of the readings, stale values, recoveries and memory samples. The
product's own ages are not asked: a reading that names a modality must have true evidence behind it (``simulated.Truth``).
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.faults import GONE, Fault
from runtime.messages import End, Message, Narration, Reading, Status
from runtime.perception import STALE_S
from runtime.simulated import Truth

MODALITIES = {"camera": "visual", "microphone": "audio"}  # role → its part of a reading's path
PATHS = ("audio-visual", "visual", "audio")
BINS = 288  # of the timeline, at most: five minutes each in a day
MEMORY_SAMPLES = 1440
WARM_UP_SHARE, LONGEST_WARM_UP_H = 0.25, 2.0
_EXAMPLES = 5
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


class Observer:
    """``truths`` by role; ``moment_s``: between two readings; ``progress``: told the time of each status."""

    def __init__(
        self, truths: Mapping[str, Truth], faults: Sequence[Fault], duration_s: float, moment_s: float, progress: Callable[[float], None]
    ) -> None:  # fmt: skip
        self._truths, self._moment_s, self._progress = truths, moment_s, progress
        self._hash = hashlib.sha256()
        self._pending = {
            role: [f for f in faults if f.lane == role and f.kind in GONE] for role in truths
        }  # outages from which the device has not been seen to come back
        self._ignored = [f for f in faults if f.kind == "ignore audio"]
        self._sample_s = duration_s / MEMORY_SAMPLES
        self._next_sample_s = 0.0
        self._path = self._state = ""
        self.bin_s = moment_s * math.ceil(duration_s / BINS / moment_s)  # whole moments
        self.bins = [Counter[str]() for _ in range(math.ceil(duration_s / self.bin_s))]
        self.paths, self.states_s, self.narrator_s = Counter[str](), Counter[str](), Counter[str]()
        self.readings = self.path_changes = self.state_changes = self.narrations = self.incomplete = (
            self.stale
        ) = 0
        self.stale_examples: list[str] = []
        self.back_s: dict[str, list[float]] = {role: [] for role in truths}
        # (hour, MB) each; made now and written from the start, so that the measurement is not part of what grows
        self._memory = np.full((MEMORY_SAMPLES + 2, 2), -1.0)
        self._samples = 0
        self.narrated_s: list[float] = []
        self.end: End | None = None
        self.closed = threading.Event()

    @property
    def readings_sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def memory(self) -> list[tuple[float, float]]:
        """(hour, MB), ascending."""
        return [(round(float(hour), 5), round(float(mb), 3)) for hour, mb in self._memory[: self._samples]]

    def publish(self, message: Message) -> None:
        match message:
            case Reading():
                self._read(message)
            case Status():
                self._beat(message)
            case Narration():
                self.narrations += 1
                self.incomplete += not message.complete
                self.narrated_s.append(message.time_s)
            case End():
                self.end = message
            case _:
                pass

    def close(self) -> None:
        self.closed.set()

    def _read(self, reading: Reading) -> None:
        self.readings += 1
        self._hash.update(repr(reading).encode())
        self.paths[reading.path] += 1
        self.bins[int(reading.time_s / self.bin_s + 1e-6)][reading.path] += 1
        self.path_changes += self._path not in ("", reading.path)
        self._path = reading.path
        for role, modality in MODALITIES.items():
            if modality in reading.path.split("-"):
                self._judge(role, reading.time_s)
                self._recover(role, reading.time_s)

    def _judge(self, role: str, now_s: float) -> None:
        """Is there true evidence behind what is published?"""
        newest_s = self._truths[role].newest_s(now_s)
        if newest_s is not None and role == "microphone":
            newest_s = self._before_ignored(newest_s)
        if newest_s is not None and now_s - newest_s <= STALE_S + self._moment_s + 1e-6:
            return
        self.stale += 1
        if len(self.stale_examples) < _EXAMPLES:
            age = "without any" if newest_s is None else f"{now_s - newest_s:.1f} s after the newest true"
            self.stale_examples.append(f"at {now_s:.1f} s the reading names the {role} {age} evidence")

    def _before_ignored(self, newest_s: float) -> float:
        """Sound that the show asked us to ignore is no evidence."""
        within = [f.start_s for f in self._ignored if f.start_s < newest_s < f.end_s]
        return within[0] if within else newest_s

    def _recover(self, role: str, now_s: float) -> None:
        """The first reading with a device after its return. One that came in the next outage only, or that had to wait until sound was to
        be heard again, is not counted."""
        pending = self._pending[role]
        while len(pending) > 1 and pending[1].start_s <= now_s:
            del pending[0]
        if not pending or pending[0].end_s > now_s:
            return
        returned_s = pending.pop(0).end_s
        ignored = any(f.start_s < now_s and f.end_s > returned_s for f in self._ignored)
        if role == "camera" or not ignored:
            self.back_s[role].append(round(now_s - returned_s, 3))

    def _beat(self, status: Status) -> None:
        self.states_s[status.state] += 1
        self.narrator_s[status.narrator] += 1
        self.state_changes += self._state not in ("", status.state)
        self._state = status.state
        self._progress(status.time_s)
        if status.time_s >= self._next_sample_s and self._samples < len(self._memory):
            self._next_sample_s = status.time_s + self._sample_s
            self._memory[self._samples] = status.time_s / 3600, resident_mb()
            self._samples += 1


def resident_mb() -> float:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MB


def warm_up_h(hours: float) -> float:
    """How much of the beginning says nothing about growth: caches and pools fill."""
    return min(WARM_UP_SHARE * hours, LONGEST_WARM_UP_H)


def slope_mb_per_h(memory: Sequence[tuple[float, float]], warm_up_h: float) -> float | None:
    """Least squares through (hour, MB) after the warm-up; None with fewer than three of them."""
    kept = np.array([sample for sample in memory if sample[0] >= warm_up_h], np.float64)  # (n, 2)
    return None if len(kept) < 3 else round(float(np.polyfit(kept[:, 0], kept[:, 1], 1)[0]), 4)
