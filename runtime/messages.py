"""Messages that travel between the parts of the runtime: frozen, and stamped with the run's clock.

Every ``*_s`` is in seconds since the run began: on a file the media time, on live sources the monotonic
clock. Wall-clock time appears only in ``End``. A timeline holds these messages as JSON lines (``record``), in
order.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vaemotion.contract.address import without_secrets
from vaemotion.contract.image import Picture
from vaemotion.contract.plain_text import plain

TIMELINE_SCHEMA = 1
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Frame:
    """A frame of a film or camera."""

    # Start of display in a file; arrival from a camera.
    time_s: float
    # Returns (H, W, 3) uint8 RGB, upright. Conversion happens in this call; for several threads see ``once``.
    picture: Callable[[], Picture]
    # End of display, 0 where it is not known.
    end_s: float = 0.0
    # Bytes of memory that it holds.
    size_bytes: int = 0


def once(convert: Callable[[], Picture]) -> Callable[[], Picture]:
    """Return a callable that converts at most once, whichever thread asks first.

    FFmpeg hangs when two threads convert the same frame.
    """
    lock, kept = threading.Lock(), list[Picture]()

    def picture() -> Picture:
        with lock:
            if not kept:
                kept.append(convert())
            return kept[0]

    return picture


@dataclass(frozen=True)
class Sound:
    """A block of sound."""

    # Time of its last sample.
    time_s: float
    # (n,) float32 in [-1, 1], one channel at 16 kHz.
    samples: npt.NDArray[np.float32]
    # Samples of the device that were not finite, and became silence.
    broken: int = 0


def _plain_fields(message: object, *names: str) -> None:
    """Make texts of a frozen message plain lines: a device, a bundle, a model or a library wrote them."""
    for name in names:
        text = " ".join(line.strip() for line in getattr(message, name).split("\n"))
        object.__setattr__(message, name, plain(text))


@dataclass(frozen=True)
class Start:
    """The first message: bundle, source and engines."""

    bundle: str
    bundle_sha256: str
    source: str
    pace: str
    # One line each, with the reason for the choice.
    engines: tuple[str, ...]
    lineage: dict[str, Any]
    version: str
    schema: int = TIMELINE_SCHEMA

    def __post_init__(self) -> None:
        _plain_fields(self, "bundle", "source", "pace", "version")
        object.__setattr__(self, "engines", tuple(map(plain, self.engines)))


class NotFinite(ValueError):
    """A reading that would hold NaN or infinity."""


@dataclass(frozen=True)
class Reading:
    """The affect that the work expresses at one time.

    Raises NotFinite where a number in it is NaN or infinite: such a result is no evidence of anything.
    """

    # Time of the newest evidence.
    time_s: float
    # Each in [-1, 1].
    valence: float
    arousal: float
    # Predictive standard deviations.
    valence_sd: float
    arousal_sd: float
    # Probability of each emotion of the vocabulary.
    emotions: dict[str, float]
    # "audio", "visual" or "audio-visual".
    path: str
    # Age of each modality's newest evidence; None where the modality is absent.
    visual_age_s: float | None
    audio_age_s: float | None
    # From the newest evidence to publication; None at ``--pace max``, whose clock is simulated.
    latency_ms: float | None = None
    # Calibrated probability of the strongest emotion; None where the bundle has no calibration of confidence.
    confidence: float | None = None
    # Half the width of the interval that holds the label 90 times in 100 (split conformal prediction, Vovk et
    # al. 2005); None where the bundle has no calibration of confidence.
    valence_interval: float | None = None
    arousal_interval: float | None = None
    # The emotion that the show has committed to; None without a show.
    label: str | None = None
    # The show's state (``runtime.show.show``); None without a show.
    state: str | None = None

    def __post_init__(self) -> None:
        for name, value in {**self.__dict__, **self.emotions}.items():
            if not (value is None or isinstance(value, str | dict) or math.isfinite(value)):
                raise NotFinite(f"{name} of a reading must be finite, got {value}")


@dataclass(frozen=True)
class Narration:
    """A sentence about one reading."""

    # Time of publication.
    time_s: float
    # Time of the reading.
    about_s: float
    # Whole sentences in one line.
    text: str

    def __post_init__(self) -> None:
        _plain_fields(self, "text")

    @property
    def age_s(self) -> float:
        """Seconds from the reading to publication."""
        return self.time_s - self.about_s


@dataclass(frozen=True)
class Notice:
    """A sentence for a technician: a damaged packet, a modality that came or went, a drop."""

    time_s: float
    text: str

    def __post_init__(self) -> None:
        _plain_fields(self, "text")


@dataclass(frozen=True)
class DeviceStatus:
    """State of a camera or microphone."""

    # "none" (not configured), "absent" (no evidence yet), "live", "frozen" or "lost".
    state: str = "none"
    # Age of its newest evidence; None while there is none.
    age_s: float | None = None
    # Count of times that it was lost or froze.
    losses: int = 0


@dataclass(frozen=True)
class Status:
    """Health of a run, once a second, also while nothing is perceived."""

    # Time of the run's clock.
    time_s: float
    # "running", "muted", or the show's state (``runtime.show.show``).
    state: str
    # Whole seconds of the run's clock.
    beat: int
    # Since the run began, by the wall clock.
    uptime_s: float
    # Seconds of the run's clock per second of the wall clock since the last status.
    realtime_ratio: float
    # Count of readings published.
    readings: int
    muted: bool
    # Time that sound will still be ignored, as a control asked.
    ignoring_audio_s: float
    # Count of controls applied.
    controls: int
    # Count of messages that were no control.
    controls_ignored: int
    # Count of ticks left out because this machine was behind.
    dropped_moments: int
    # Count of messages that this sink did not get.
    dropped_messages: int = 0
    camera: DeviceStatus = DeviceStatus()
    microphone: DeviceStatus = DeviceStatus()
    # Newest sound minus newest frame; None unless both are live.
    skew_ms: float | None = None
    # Drift of the microphone's clock, in parts per million; None while it is not known.
    drift_ppm: float | None = None
    # 99th percentile from a tick to its reading, while no narration is made; None before there is one.
    latency_p99_ms: float | None = None
    # The same while a narration is made.
    latency_p99_narrating_ms: float | None = None
    # Synchronization of the wall clock; None where the system does not tell.
    clock_synchronised: bool | None = None
    # "on", "slowed" or "off".
    narrator: str = "off"
    # Count of narrations published.
    narrations: int = 0
    # Counts of those that were not, by reason (``runtime.narration.narrator.Withheld``).
    narrations_withheld: dict[str, int] = field(default_factory=dict[str, int])
    # Counts by kind of what the run survived: messages that were not written, input that could not be used,
    # results that are not finite.
    lost: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class End:
    """The last message."""

    time_s: float
    # "source ended", "interrupted" or "failed: ...".
    reason: str
    # Wall-clock time of the beginning, ISO 8601.
    started_at: str
    # Duration by the wall clock.
    wall_s: float
    # Counts of messages published.
    readings: int
    narrations: int
    # Runs of each encoder.
    encodes: dict[str, int]
    # Counts by kind of what was dropped.
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    # Per stage: count; p50, p95 and max in milliseconds; ``total_s`` and ``cpu_s`` of its thread.
    stages_ms: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    # The most that ever waited in each queue.
    deepest: dict[str, int] = field(default_factory=dict[str, int])
    # Counts of narrations that were not published, by reason.
    narrations_withheld: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        _plain_fields(self, "reason", "started_at")


Message = Start | Reading | Narration | Notice | Status | End


def record(message: Message) -> dict[str, Any]:
    """Return a message as a JSON object; ``type`` is its class in lower case."""
    values = asdict(message)
    if isinstance(message, Narration):
        values["age_s"] = message.age_s
    return {"type": type(message).__name__.lower(), **values}


def to_json(message: Message) -> str:
    """Return a message as one line of JSON, without a line end. Every encoding of Unicode can hold it."""
    return _SURROGATE.sub("\ufffd", json.dumps(record(message), ensure_ascii=False, allow_nan=False))


def source_name(source: str) -> str:
    """Return a source's public name: a file without folders, an address without what may be secret."""
    if source.startswith("/"):
        return plain(source.rpartition("/")[2])
    devices = re.split(r", (?=microphone )", source)
    return plain(", ".join(without_secrets(device) for device in devices))
