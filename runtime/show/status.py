"""The status of each second: ``Heartbeat`` decides when it is due, ``build_status`` makes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.messages import DeviceStatus, Notice, Status
from runtime.show.controls import ControlState
from vaemotion.contract.windows import EPSILON_S

HEARTBEAT_S = 1.0
NO_DEVICE = DeviceStatus()


@dataclass(frozen=True)
class Progress:
    """Counts since the run began."""

    readings: int
    ticks: int
    # Ticks that were left out because this machine was behind.
    skipped: int
    # See ``Status``.
    lost: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Beat:
    """The times of a status; see ``Status`` for each field."""

    time_s: float
    beat: int
    uptime_s: float
    realtime_ratio: float


@dataclass(frozen=True)
class RunState:
    """The part of a status that depends on the kind of run; see ``Status`` for each field."""

    narrator: str
    # None: "muted" or "running", as the show's controls say.
    state: str | None = None
    camera: DeviceStatus = NO_DEVICE
    microphone: DeviceStatus = NO_DEVICE
    skew_ms: float | None = None
    drift_ppm: float | None = None
    latency_p99_ms: float | None = None
    latency_p99_narrating_ms: float | None = None
    clock_synchronised: bool | None = None


class Heartbeat:
    """Apply the show's controls at each tick, and say when a status is due."""

    def __init__(self, controls: ControlState, wall_s: Callable[[], float] = time.monotonic) -> None:
        """Take the controls to apply. ``wall_s``: seconds of the wall clock."""
        self._controls, self._wall_s = controls, wall_s
        self._next_s = 0.0
        self._muted = False
        self._began_wall_s = wall_s()
        # Of the last status: the run's clock, the wall's.
        self._last: tuple[float, float] | None = None

    def attend(self, now_s: float) -> tuple[list[Notice], Beat | None]:
        """Return the notices of the controls that came, and the beat if a status is due at ``now_s``.

        Call it once a tick, before the tick's sound is perceived. A status is due at once when a control
        is told, and when the show is muted or resumed.
        """
        notices = self._controls.apply(now_s)
        muted_before, self._muted = self._muted, self._controls.muted
        if not notices and muted_before == self._muted and now_s < self._next_s - EPSILON_S:
            return notices, None
        beat, wall_s = int(now_s + EPSILON_S), self._wall_s()
        self._next_s = beat + HEARTBEAT_S
        run_before_s, wall_before_s = self._last or (now_s, wall_s)
        self._last = (now_s, wall_s)
        elapsed_s = wall_s - wall_before_s
        ratio = (now_s - run_before_s) / elapsed_s if elapsed_s > 0 else 1.0
        return notices, Beat(now_s, beat, wall_s - self._began_wall_s, ratio)


def build_status(beat: Beat, controls: ControlState, progress: Progress, state: RunState) -> Status:
    """Return the status of one second. The publisher adds each sink's dropped messages."""
    return Status(
        time_s=round(beat.time_s, 3),
        state=state.state or ("muted" if controls.muted else "running"),
        beat=beat.beat,
        uptime_s=beat.uptime_s,
        realtime_ratio=beat.realtime_ratio,
        readings=progress.readings,
        muted=controls.muted or state.state == "muted",
        ignoring_audio_s=controls.ignoring_audio_s(beat.time_s),
        controls=controls.applied,
        controls_ignored=controls.ignored,
        dropped_moments=progress.skipped,
        camera=state.camera,
        microphone=state.microphone,
        skew_ms=state.skew_ms,
        drift_ppm=state.drift_ppm,
        latency_p99_ms=state.latency_p99_ms,
        latency_p99_narrating_ms=state.latency_p99_narrating_ms,
        clock_synchronised=state.clock_synchronised,
        narrator=state.narrator,
        lost=progress.lost,
    )
