"""The record of a soak: ``Soak``, one frozen record for each part of what was measured.

soak.json holds the fields of all parts side by side (``flat``), so their names are unique over all parts. In
names and keys a "moment" is a tick of the run. Times are simulated unless the field says otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from runtime.commands.soak.faults import Fault


@dataclass(frozen=True)
class Setup:
    """The bundle, the machine and the options of a soak."""

    bundle: str
    bundle_sha256: str  # of its manifest
    media: str  # names of the files that the devices delivered, or "built-in film"
    machine: str
    threads: int  # of the engines
    seed: int
    speed: str  # as given: "max", "real", or simulated seconds per second
    asked_hours: float
    faults: tuple[Fault, ...]  # as planned, by their start


@dataclass(frozen=True)
class Run:
    """The part of the soak that was run."""

    hours: float
    wall_s: float  # real time
    moment_s: float  # between two ticks
    failure: str | None  # the error that ended the run early


@dataclass(frozen=True)
class Perceived:
    """The readings of a run, judged against what the simulated devices really delivered."""

    readings: int
    readings_sha256: str  # of all readings in order
    paths: dict[str, int]  # readings by path
    path_changes: int
    bin_s: float  # width of a bin of ``timeline``
    timeline: tuple[dict[str, int], ...]  # readings by path in each bin
    stale: int  # times that a reading named a device without recent true evidence
    stale_examples: tuple[str, ...]


@dataclass(frozen=True)
class ShowStates:
    """The states of the show."""

    states_s: dict[str, int]  # seconds in each state
    state_changes: int


@dataclass(frozen=True)
class Narrated:
    """The narrations, and the states of the governor that slows the narrator down."""

    narrations: int
    narrations_withheld: dict[str, int]  # those that were not published, by reason
    narrator_s: dict[str, int]  # seconds in each state of the governor


@dataclass(frozen=True)
class MemoryGrowth:
    """Resident memory over time."""

    memory: tuple[tuple[float, float], ...]  # (hour, MB), ascending
    warm_up_h: float  # left out of the slope
    slope_mb_per_h: float | None  # least squares; None with fewer than three samples


@dataclass(frozen=True)
class TickTimes:
    """The real time that the work of each tick took."""

    moments: int  # ticks
    moment_ms: tuple[float, float, float]  # p50, p99, max
    deadline_ms: float  # between two ticks of a live run
    missed: int  # ticks with longer work
    missed_narrating: int  # those of them that made a narration, which a live run does in a thread of its own


@dataclass(frozen=True)
class DeviceRecord:
    """The outages of one device."""

    outages: int  # faults in which it delivered nothing new
    losses: int  # times that the runtime called it lost or frozen
    back_s: tuple[float, ...]  # from its return to the first reading with it, of outages that ended in time


@dataclass(frozen=True)
class Simulated:
    """The simulated devices, and the microphone's sample clock against the true time."""

    devices: dict[str, DeviceRecord]
    clock_error_ms: float  # largest error in streams older than ``devices.SETTLED_S``
    clock_first_error_ms: float  # largest error in younger ones


@dataclass(frozen=True)
class Totals:
    """The counts of the run's ``End`` message; empty where it ended without one."""

    dropped: dict[str, int]
    encodes: dict[str, int]  # by encoder
    stages_ms: dict[str, dict[str, float]]  # real time by stage


@dataclass(frozen=True)
class Soak:
    """One soak."""

    setup: Setup
    run: Run
    perceived: Perceived
    show: ShowStates
    narrated: Narrated
    growth: MemoryGrowth
    ticks: TickTimes
    simulated: Simulated
    totals: Totals

    @property
    def duration_s(self) -> float:
        """Simulated seconds that were run."""
        return self.run.hours * 3600

    @property
    def faults_by_kind(self) -> dict[str, int]:
        """Number of faults of each kind that had begun when the soak ended."""
        kinds = [fault.kind for fault in self.setup.faults if fault.start_s < self.duration_s]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def flat(found: Soak) -> dict[str, Any]:
    """Return the fields of all parts side by side, as soak.json holds them."""
    return {
        name: value for part in fields(found) for name, value in asdict(getattr(found, part.name)).items()
    }
