"""The soak's own sink: judge the published messages by what the simulated devices really delivered.

In: every message of a run, on one thread, in order. Out: records of readings, stale values, recoveries,
states, narrations and memory. The runtime's own ages are not used: a reading that names a modality must have
true evidence behind it (``devices.GroundTruth``).
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

from runtime.commands.soak.devices import GroundTruth
from runtime.commands.soak.faults import OUTAGES, Fault
from runtime.commands.soak.records import MemoryGrowth, Narrated, Perceived, ShowStates, Totals
from runtime.messages import End, Message, Narration, Reading, Status
from runtime.perception.perception import STALE_S
from vaemotion.contract.windows import EPSILON_S

MODALITIES = {"camera": "visual", "microphone": "audio"}  # role → its part of a reading's path
PATHS = ("audio-visual", "visual", "audio")  # in the order of the report
BINS = 288  # largest number of the timeline's bins: five minutes each in a day
MEMORY_SAMPLES = 1440
WARM_UP_SHARE, LONGEST_WARM_UP_H = 0.25, 2.0
_EXAMPLES = 5
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


class Observer:
    """A sink that counts and judges the messages of a soak.

    ``truths``: by role; ``duration_s``: of the soak; ``tick_s``: between two readings; ``progress``: called
    with the time of each status.
    """

    def __init__(
        self,
        truths: Mapping[str, GroundTruth],
        faults: Sequence[Fault],
        duration_s: float,
        tick_s: float,
        progress: Callable[[float], None],
    ) -> None:
        self._truths, self._tick_s, self._progress = truths, tick_s, progress
        self._hash = hashlib.sha256()
        # Outages after which the device has not been in a reading yet.
        self._pending = {
            role: [fault for fault in faults if fault.lane == role and fault.kind in OUTAGES]
            for role in truths
        }
        self._ignored = [fault for fault in faults if fault.kind == "ignore audio"]
        self._sample_s = duration_s / MEMORY_SAMPLES
        self._next_sample_s = 0.0
        self._path = self._state = ""
        self.bin_s = tick_s * math.ceil(duration_s / BINS / tick_s)  # whole ticks
        self.bins = [Counter[str]() for _ in range(math.ceil(duration_s / self.bin_s))]
        self.paths, self.states_s, self.narrator_s = Counter[str](), Counter[str](), Counter[str]()
        self.readings = self.path_changes = self.state_changes = 0
        self.narrations = self.stale = 0
        self.withheld: dict[str, int] = {}
        self.stale_examples: list[str] = []
        self.back_s: dict[str, list[float]] = {role: [] for role in truths}
        # (hour, MB) each. Allocated and written now, so that the measurement does not grow itself.
        self._memory = np.full((MEMORY_SAMPLES + 2, 2), -1.0)
        self._samples = 0
        self.narrated_s: list[float] = []
        self.end: End | None = None
        self.closed = threading.Event()

    def perceived(self) -> Perceived:
        """Return the record of the readings so far."""
        return Perceived(
            readings=self.readings,
            readings_sha256=self.readings_sha256,
            paths={path: self.paths[path] for path in PATHS},
            path_changes=self.path_changes,
            bin_s=self.bin_s,
            timeline=tuple(dict(counts) for counts in self.bins),
            stale=self.stale,
            stale_examples=tuple(self.stale_examples),
        )

    def show_states(self) -> ShowStates:
        """Return the record of the show's states so far."""
        return ShowStates(states_s=dict(self.states_s), state_changes=self.state_changes)

    def narrated(self) -> Narrated:
        """Return the record of the narrations so far."""
        return Narrated(
            narrations=self.narrations,
            narrations_withheld=self.withheld,
            narrator_s=dict(self.narrator_s),
        )

    def memory_growth(self, hours: float) -> MemoryGrowth:
        """Return the record of resident memory over a soak of ``hours``."""
        warm_h = warm_up_h(hours)
        return MemoryGrowth(
            memory=tuple(self.memory),
            warm_up_h=round(warm_h, 3),
            slope_mb_per_h=slope_mb_per_h(self.memory, warm_h),
        )

    def totals(self) -> Totals:
        """Return the counts of the run's ``End`` message; empty where none came."""
        if self.end is None:
            return Totals(dropped={}, encodes={}, stages_ms={})
        return Totals(dropped=self.end.dropped, encodes=self.end.encodes, stages_ms=self.end.stages_ms)

    @property
    def readings_sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def memory(self) -> list[tuple[float, float]]:
        """Samples of resident memory: (hour, MB), ascending."""
        return [(round(float(hour), 5), round(float(mb), 3)) for hour, mb in self._memory[: self._samples]]

    def publish(self, message: Message) -> None:
        """Count and judge one message."""
        match message:
            case Reading():
                self._count_reading(message)
            case Status():
                self._count_status(message)
            case Narration():
                self.narrations += 1
                self.narrated_s.append(message.time_s)
            case End():
                self.end, self.withheld = message, message.narrations_withheld
            case _:
                pass

    def close(self) -> None:
        self.closed.set()

    def _count_reading(self, reading: Reading) -> None:
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
        """Count a stale value where a reading names a device without recent true evidence."""
        newest_s = self._truths[role].newest_s(now_s)
        if newest_s is not None and role == "microphone":
            newest_s = self._before_ignored(newest_s)
        if newest_s is not None and now_s - newest_s <= STALE_S + self._tick_s + EPSILON_S:
            return
        self.stale += 1
        if len(self.stale_examples) < _EXAMPLES:
            age = "without any" if newest_s is None else f"{now_s - newest_s:.1f} s after the newest true"
            self.stale_examples.append(f"at {now_s:.1f} s the reading names the {role} {age} evidence")

    def _before_ignored(self, newest_s: float) -> float:
        """Return the newest evidence that the show did not ask to ignore."""
        within = [fault.start_s for fault in self._ignored if fault.start_s < newest_s < fault.end_s]
        return within[0] if within else newest_s

    def _recover(self, role: str, now_s: float) -> None:
        """Note the time from a device's return to the first reading with it.

        Not counted: a return that was followed by the next outage before a reading, and a return of the
        microphone while the show ignored sound.
        """
        pending = self._pending[role]
        while len(pending) > 1 and pending[1].start_s <= now_s:
            del pending[0]
        if not pending or pending[0].end_s > now_s:
            return
        returned_s = pending.pop(0).end_s
        ignored = any(fault.start_s < now_s and fault.end_s > returned_s for fault in self._ignored)
        if role == "camera" or not ignored:
            self.back_s[role].append(round(now_s - returned_s, 3))

    def _count_status(self, status: Status) -> None:
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
    """Return this process's resident memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MB


def warm_up_h(hours: float) -> float:
    """Return the hours at the start of a soak that its slope leaves out, while caches and pools fill."""
    return min(WARM_UP_SHARE * hours, LONGEST_WARM_UP_H)


def slope_mb_per_h(memory: Sequence[tuple[float, float]], warm_up_h: float) -> float | None:
    """Fit samples (hour, MB) after the warm-up by least squares; return None with fewer than three."""
    kept = np.array([sample for sample in memory if sample[0] >= warm_up_h], np.float64)  # (n, 2)
    return None if len(kept) < 3 else round(float(np.polyfit(kept[:, 0], kept[:, 1], 1)[0]), 4)
