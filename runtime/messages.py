"""Messages that travel between the rooms of the runtime: frozen, and stamped with the runtime's one clock.

Every ``*_s`` is in seconds since the run began: on a file the media time, on live sources the monotonic clock's. Wall-clock
time appears only in ``End``. A timeline is these messages as JSON lines (``record``), one object a line, in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

TIMELINE_SCHEMA = 1


Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """A picture as it came. ``time_s``: when it was shown or taken; ``end_s``: until when it is shown, where that is known.
    ``picture()``: (H, W, 3) uint8 RGB, upright, converted only when somebody looks; where several threads look, see ``once``."""

    time_s: float
    picture: Callable[[], Picture]
    end_s: float = 0.0


def once(convert: Callable[[], Picture]) -> Callable[[], Picture]:
    """A conversion that is done at most once, by whichever thread looks first: FFmpeg hangs when two convert the same picture."""
    lock, kept = threading.Lock(), list[Picture]()

    def picture() -> Picture:
        with lock:
            if not kept:
                kept.append(convert())
            return kept[0]

    return picture


@dataclass(frozen=True)
class Sound:
    """A block of sound: (n,) float32, one channel at 16 kHz. ``time_s``: when its last sample had come."""

    time_s: float
    samples: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Start:
    """The first message: what runs on what. ``engines``: one line each, with the reason for the choice."""

    bundle: str
    bundle_sha256: str
    source: str
    pace: str
    engines: tuple[str, ...]
    lineage: dict[str, Any]
    version: str
    schema: int = TIMELINE_SCHEMA


@dataclass(frozen=True)
class Reading:
    """What the work expresses at ``time_s``, the time of the newest evidence.

    Valence and arousal in [-1, 1], their predictive standard deviations, a distribution over the emotion vocabulary. ``path``:
    "audio", "visual" or "audio-visual"; the age of each modality's newest evidence, None where it is absent.
    ``latency_ms``: from that evidence to here, None at ``--pace max``, whose clock is simulated.

    ``confidence``: calibrated probability of the strongest emotion; ``valence_interval``, ``arousal_interval``: half the width of
    the interval that holds the label 90 times in 100 (split conformal prediction, Vovk et al. 2005). None where the bundle has no calibration
    of confidence. ``label``: the emotion that a show has committed to, ``state``: its state (``runtime.show``); None without a show.
    """

    time_s: float
    valence: float
    arousal: float
    valence_sd: float
    arousal_sd: float
    emotions: dict[str, float]
    path: str
    visual_age_s: float | None
    audio_age_s: float | None
    latency_ms: float | None = None
    confidence: float | None = None
    valence_interval: float | None = None
    arousal_interval: float | None = None
    label: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class Narration:
    """A sentence about the reading at ``about_s``, ``age_s`` old when it was published at ``time_s``. ``complete`` is False when it was
    cancelled or ran into its limit."""

    time_s: float
    about_s: float
    text: str
    complete: bool

    @property
    def age_s(self) -> float:
        return self.time_s - self.about_s


@dataclass(frozen=True)
class Notice:
    """Something that a technician should know: a damaged packet, a modality that came or went, a drop."""

    time_s: float
    text: str


@dataclass(frozen=True)
class DeviceStatus:
    """A camera or a microphone. ``state``: "none" (not configured), "absent" (never seen yet), "live", "frozen", "lost";
    ``age_s``: of its newest evidence, None while there is none; ``losses``: how often it was lost or froze."""

    state: str = "none"
    age_s: float | None = None
    losses: int = 0


@dataclass(frozen=True)
class Status:
    """What a technician should know once a second, also when nothing is perceived.

    ``state``: "running", "muted", or the show's (``runtime.show``); ``beat``: whole seconds of the run's clock; ``realtime_ratio``: of that clock
    to the wall's since the last status; ``skew_ms``: newest sound minus newest picture, None unless both are live; ``drift_ppm``: of the
    microphone's clock; ``latency_p99_ms``: from a moment to its reading, while no narration is made, and ``…_narrating_ms`` while one is; ``clock_synchronised``: whether the wall clock is, None where nobody knows;
    ``narrator``: "on", "slowed" or "off".
    """

    time_s: float
    state: str
    beat: int
    uptime_s: float
    realtime_ratio: float
    readings: int
    muted: bool
    ignoring_audio_s: float
    controls: int
    controls_ignored: int
    dropped_moments: int
    dropped_messages: int = 0
    camera: DeviceStatus = DeviceStatus()
    microphone: DeviceStatus = DeviceStatus()
    skew_ms: float | None = None
    drift_ppm: float | None = None
    latency_p99_ms: float | None = None
    latency_p99_narrating_ms: float | None = None
    clock_synchronised: bool | None = None
    narrator: str = "off"


@dataclass(frozen=True)
class End:
    """The last message. ``reason``: "source ended", "interrupted" or "failed: ..."; ``encodes``: how often each encoder ran; ``dropped``:
    counts by what was dropped; ``stages_ms``: per stage its count, p50, p95 and max in milliseconds, ``total_s`` and ``cpu_s`` (of its own thread); ``deepest``: the most that ever waited in each queue. ``started_at``: ISO 8601."""

    time_s: float
    reason: str
    started_at: str
    wall_s: float
    readings: int
    narrations: int
    encodes: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    stages_ms: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    deepest: dict[str, int] = field(default_factory=dict[str, int])


Message = Start | Reading | Narration | Notice | Status | End


def record(message: Message) -> dict[str, Any]:
    """A message as a JSON object; ``type`` is its class in lower case."""
    values = asdict(message)
    if isinstance(message, Narration):
        values["age_s"] = message.age_s
    return {"type": type(message).__name__.lower(), **values}
