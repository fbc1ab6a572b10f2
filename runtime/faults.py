"""A seeded schedule of what goes wrong in a soak: ``Fault``s in lanes, one lane for each thing that can fail.

In: how long, how many, a seed. Out: the same faults for the same seed, at least one of each kind, those of one lane never at the same time.
Faults of different lanes overlap as chance has it: camera and microphone are also gone together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from vaemotion.contract.errors import UsageError

FAULTS_PER_HOUR = 16.0  # 384 in 24 hours
SHORTEST_SLOT_S = 24.0  # a lane's time for one fault and for the recovery from it
SKEW_PPM = 300.0  # what a crystal may be off by, to either side


@dataclass(frozen=True)
class Kind:
    """``lane``: what fails. A fault lasts ``shortest_s`` to ``longest_s``, at most half of its slot."""

    name: str
    lane: str
    shortest_s: float
    longest_s: float


KINDS = (
    Kind("camera absent at boot", "camera", 4, 60),
    Kind("camera unplugged", "camera", 2, 120),
    Kind("camera frozen", "camera", 2, 60),
    Kind("darkness", "camera", 5, 120),
    Kind("microphone absent at boot", "microphone", 4, 60),
    Kind("microphone unplugged", "microphone", 2, 120),
    Kind("microphone frozen", "microphone", 2, 60),
    Kind("silence", "microphone", 5, 120),
    Kind("late callbacks", "microphone", 5, 120),
    Kind("clock skew", "microphone", 10, 240),
    Kind("slow sink", "sink", 2, 60),
    Kind("dead sink", "sink", 240, 600),
    Kind("heat", "machine", 40, 300),
    Kind("mute", "show", 5, 120),
    Kind("ignore audio", "show", 2, 60),
)
BOOT = ("camera absent at boot", "microphone absent at boot")  # once each, from the first moment on
GONE = frozenset(
    (*BOOT, "camera unplugged", "camera frozen", "microphone unplugged", "microphone frozen")
)  # the device gives nothing new


@dataclass(frozen=True)
class Fault:
    """``kind``: a name of ``KINDS``; from ``start_s`` until ``end_s`` of the run. ``amount``: ppm of a clock skew, else 0."""

    kind: str
    lane: str
    start_s: float
    end_s: float
    amount: float = 0.0


class Lane:
    """One lane's faults, ascending, for one reader whose time only goes on."""

    def __init__(self, faults: Sequence[Fault], name: str) -> None:
        self.faults = [fault for fault in faults if fault.lane == name]
        self._next = 0

    def at(self, time_s: float) -> Fault | None:
        """What is wrong at ``time_s``."""
        while self._next < len(self.faults) and self.faults[self._next].end_s <= time_s:
            self._next += 1
        if self._next < len(self.faults) and self.faults[self._next].start_s <= time_s:
            return self.faults[self._next]
        return None


def schedule(duration_s: float, count: int | None, seed: int) -> list[Fault]:
    """``count`` faults (None: ``FAULTS_PER_HOUR``, and at least one of each kind), ascending by their start. Raises UsageError when the
    time is too short for so many."""
    count = max(len(KINDS), round(FAULTS_PER_HOUR * duration_s / 3600)) if count is None else count
    if count < len(KINDS):
        raise UsageError(f"--faults must be at least {len(KINDS)}, one of each kind, got {count}")
    random = np.random.default_rng(seed)
    often = [kind for kind in KINDS if kind.name not in BOOT]
    kinds = [*KINDS, *(often[int(k)] for k in random.integers(len(often), size=count - len(KINDS)))]
    kinds = sorted(kinds, key=lambda kind: kind.lane)  # stable: what comes first in KINDS stays first
    faults: list[Fault] = []
    for lane, members in groupby(kinds, key=lambda kind: kind.lane):
        faults += _lane(lane, list(members), duration_s, count, random)
    return sorted(faults, key=lambda fault: (fault.start_s, fault.kind))


def _lane(
    name: str, kinds: list[Kind], duration_s: float, count: int, random: np.random.Generator
) -> list[Fault]:
    """A lane's time in equal slots, a fault in each, in random order but for the one at boot."""
    slot_s = duration_s / len(kinds)
    if slot_s < SHORTEST_SLOT_S:
        needed_h = SHORTEST_SLOT_S * len(kinds) / 3600
        raise UsageError(
            f"{count} faults need --hours {needed_h:.2f} or more, because the {name} needs {SHORTEST_SLOT_S:g} s "
            f"for each of its {len(kinds)}: give fewer --faults or more --hours"
        )
    boot, others = [k for k in kinds if k.name in BOOT], [k for k in kinds if k.name not in BOOT]
    ordered = [*boot, *(others[int(k)] for k in random.permutation(len(others)))]
    return [_fault(kind, slot_s * k, slot_s, random) for k, kind in enumerate(ordered)]


def _fault(kind: Kind, slot_start_s: float, slot_s: float, random: np.random.Generator) -> Fault:
    """One fault in its slot; a quarter of the slot and more is left behind it to recover in."""
    longest_s = min(kind.longest_s, slot_s / 2)
    length_s = random.uniform(min(kind.shortest_s, longest_s), longest_s)
    start_s = slot_start_s + random.uniform(0, 0.25 * slot_s)
    amount = SKEW_PPM * random.uniform(0.5, 1) * random.choice([-1, 1]) if kind.name == "clock skew" else 0.0
    if kind.name in BOOT:
        return Fault(kind.name, kind.lane, 0.0, round(length_s, 3))
    return Fault(
        kind.name, kind.lane, round(start_s, 3), round(start_s + length_s, 3), round(float(amount), 1)
    )
