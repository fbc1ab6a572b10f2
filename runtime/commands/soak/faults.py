"""A seeded schedule of faults for a soak, in lanes: one lane for each part that can fail.

In: duration, number of faults, seed. Out: the same ``Fault`` records for the same seed, at least one of each
kind. Faults of one lane never overlap, those of different lanes do at random: camera and microphone also fail
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from vaemotion.contract.errors import UsageError

FAULTS_PER_HOUR = 16.0  # 384 in 24 hours
SHORTEST_SLOT_S = 24.0  # a lane's time for one fault and the recovery from it
SKEW_PPM = 300.0  # largest error of a sample clock's crystal, in either direction


@dataclass(frozen=True)
class Kind:
    """A kind of fault. It lasts ``shortest_s`` to ``longest_s``, at most half of its slot."""

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
BOOT = ("camera absent at boot", "microphone absent at boot")  # once each, from the first tick on
# The device delivers nothing new.
OUTAGES = frozenset((*BOOT, "camera unplugged", "camera frozen", "microphone unplugged", "microphone frozen"))


@dataclass(frozen=True)
class Fault:
    """One fault of a soak."""

    kind: str  # a name of ``KINDS``
    lane: str
    start_s: float  # of the run
    end_s: float
    amount: float = 0.0  # ppm of a clock skew


class Lane:
    """One lane's faults, ascending, for a reader whose time never goes back."""

    def __init__(self, faults: Sequence[Fault], name: str) -> None:
        self.faults = [fault for fault in faults if fault.lane == name]
        self._next = 0

    def at(self, time_s: float) -> Fault | None:
        """Return the fault at ``time_s``, None where there is none."""
        while self._next < len(self.faults) and self.faults[self._next].end_s <= time_s:
            self._next += 1
        if self._next < len(self.faults) and self.faults[self._next].start_s <= time_s:
            return self.faults[self._next]
        return None


def schedule(duration_s: float, count: int | None, seed: int) -> list[Fault]:
    """Return ``count`` faults (None: ``FAULTS_PER_HOUR``) with at least one of each kind, by their start.

    Raises UsageError where the duration is too short for so many.
    """
    count = max(len(KINDS), round(FAULTS_PER_HOUR * duration_s / 3600)) if count is None else count
    if count < len(KINDS):
        raise UsageError(f"--faults must be at least {len(KINDS)}, one of each kind, got {count}")
    random = np.random.default_rng(seed)
    often = [kind for kind in KINDS if kind.name not in BOOT]
    kinds = [*KINDS, *(often[int(k)] for k in random.integers(len(often), size=count - len(KINDS)))]
    kinds = sorted(kinds, key=lambda kind: kind.lane)  # stable: keeps the order of KINDS
    faults: list[Fault] = []
    for lane, members in groupby(kinds, key=lambda kind: kind.lane):
        faults += _lane(lane, list(members), duration_s, count, random)
    return sorted(faults, key=lambda fault: (fault.start_s, fault.kind))


def _lane(
    name: str, kinds: list[Kind], duration_s: float, count: int, random: np.random.Generator
) -> list[Fault]:
    """Return a lane's faults: one in each of equal slots, in random order; the one at boot comes first."""
    slot_s = duration_s / len(kinds)
    if slot_s < SHORTEST_SLOT_S:
        needed_h = SHORTEST_SLOT_S * len(kinds) / 3600
        way_out = "fewer --faults or more --hours" if count > len(KINDS) else "more --hours"
        raise UsageError(
            f"{count} faults need --hours {needed_h:.2f} or more, because the {name} needs "
            f"{SHORTEST_SLOT_S:g} s for each of its {len(kinds)}; give {way_out}"
        )
    boot, others = [k for k in kinds if k.name in BOOT], [k for k in kinds if k.name not in BOOT]
    ordered = [*boot, *(others[int(k)] for k in random.permutation(len(others)))]
    return [_fault(kind, slot_s * k, slot_s, random) for k, kind in enumerate(ordered)]


def _fault(kind: Kind, slot_start_s: float, slot_s: float, random: np.random.Generator) -> Fault:
    """Return one fault within its slot; at least a quarter of the slot is left for the recovery."""
    longest_s = min(kind.longest_s, slot_s / 2)
    length_s = random.uniform(min(kind.shortest_s, longest_s), longest_s)
    start_s = slot_start_s + random.uniform(0, 0.25 * slot_s)
    amount = SKEW_PPM * random.uniform(0.5, 1) * random.choice([-1, 1]) if kind.name == "clock skew" else 0.0
    if kind.name in BOOT:
        return Fault(kind.name, kind.lane, 0.0, round(length_s, 3))
    return Fault(
        kind.name, kind.lane, round(start_s, 3), round(start_s + length_s, 3), round(float(amount), 1)
    )
