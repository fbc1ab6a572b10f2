"""The front end as a whole: a decoded clip → the encoders' inputs at one moment.

Training, evaluation, calibration and the device build their windows here, from the same constants.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import SAMPLE_RATE_HZ, LogMelConfig, log_mel, normalised_window
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.contract.windows import WindowConfig, grid_index, window_frame_indices

Float32 = npt.NDArray[np.float32]
PATHS: tuple[str, ...] = ("audio", "visual", "audio-visual")
SILENCE_RMS = 1e-4  # -80 dB of full scale


@dataclass(frozen=True)
class FrontEnd:
    """Every constant between a medium and the encoders; a field of the checkpoint's config and of the manifest."""

    log_mel: LogMelConfig = field(default_factory=LogMelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)

    @property
    def audio_window_frames(self) -> int:
        return round(self.windows.audio_window_s / self.log_mel.hop_s)

    @property
    def filled_audio_window_s(self) -> float:
        """When a medium has filled its first window of sound: the last frame is a little longer than a hop."""
        return self.log_mel.samples_for(self.audio_window_frames) / SAMPLE_RATE_HZ

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FrontEnd:
        """Strict: an unknown or missing constant is refused, because silently ignoring one changes the result."""
        expected = {"log_mel": LogMelConfig, "image": ImageConfig, "windows": WindowConfig}
        parts: dict[str, Any] = {}
        _same_keys("front_end", values, set(expected))
        for name, part in expected.items():
            _same_keys(f"front_end.{name}", values[name], {f.name for f in fields(part)})
            parts[name] = part(**values[name])
        return cls(**parts)


def _same_keys(where: str, values: dict[str, Any], expected: set[str]) -> None:
    if unknown := set(values) - expected:
        raise ValueError(f"{where} has constants this version does not implement: {sorted(unknown)}")
    if missing := expected - set(values):
        raise ValueError(f"{where} lacks the constants {sorted(missing)}")


@dataclass(frozen=True)
class Clip:
    """A decoded medium. ``frames``: (H, W, 3) uint8 RGB, upright; ``frame_times_s``: (n,) ascending, from the
    clip's start; ``samples``: (m,) float32 at 16 kHz from the clip's start. A picture is one frame at 0 s."""

    frames: tuple[npt.NDArray[np.uint8], ...] = ()
    frame_times_s: tuple[float, ...] = ()
    samples: Float32 | None = None

    @property
    def duration_s(self) -> float:
        """The end of the longer of the two; a lone picture lasts 0 s."""
        seen_s = self.frame_times_s[-1] if self.frame_times_s else 0.0
        return max(seen_s, 0.0 if self.samples is None else len(self.samples) / SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class EncoderInputs:
    """What the encoders get for one window: ``pixels`` (n, 3, side, side) with ``frame_ages_s`` (n,), oldest first, n may be 0;
    ``log_mel`` (1, frames, mels) or (0, frames, mels) without sound, which ended ``audio_age_s`` ago. ``now_s``: the
    window's moment."""

    now_s: float
    pixels: Float32
    frame_ages_s: Float32
    log_mel: Float32
    audio_age_s: float = 0.0


def window_at(clip: Clip, now_s: float, path: str, front_end: FrontEnd) -> EncoderInputs:
    """The encoders' inputs for the window that ends at ``now_s``, restricted to ``path`` (one of ``PATHS``).

    Raises ValueError when the clip lacks what the path needs.
    """
    if path not in PATHS:
        raise ValueError(f"path must be one of {PATHS}, got {path!r}")
    wants_sound, wants_sight = path != "visual", path != "audio"
    if wants_sound and clip.samples is None:
        raise ValueError(f"path {path!r} needs sound, but the clip has none")
    if wants_sight and not clip.frames:
        raise ValueError(f"path {path!r} needs pictures, but the clip has none")
    pixels, frame_ages = _visual_window(clip, now_s, front_end) if wants_sight else _no_frames(front_end)
    mel = np.zeros((0, front_end.audio_window_frames, front_end.log_mel.n_mels), np.float32)
    audio_age_s = 0.0
    if wants_sound and clip.samples is not None:
        mel = audio_window(clip.samples, now_s, front_end)[None]
        audio_age_s = max(0.0, now_s - len(clip.samples) / SAMPLE_RATE_HZ)
    return EncoderInputs(now_s, pixels, frame_ages, mel, audio_age_s)


def window_ends_s(clip: Clip, path: str, front_end: FrontEnd) -> list[float]:
    """The moments whose windows together hold the clip, ascending, the last at its end; one for a clip of about a window's length.

    From sound alone, windows in which nothing is heard (see ``SILENCE_RMS``) are left out, unless all are silent.
    """
    length_s = front_end.filled_audio_window_s
    count = 1 + max(0, round(2 * (clip.duration_s - length_s) / length_s))
    if count == 1:
        return [clip.duration_s]
    ends_s = [float(end_s) for end_s in np.linspace(length_s, clip.duration_s, count)]
    if path != "audio" or clip.samples is None:
        return ends_s
    samples = clip.samples
    heard = [end_s for end_s in ends_s if _rms(samples, end_s - length_s, end_s) > SILENCE_RMS]
    return heard or ends_s


def _rms(samples: Float32, start_s: float, end_s: float) -> float:
    part = samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    return math.sqrt(float(np.mean(np.square(part, dtype=np.float64)))) if part.size else 0.0


def audio_window(samples: Float32, now_s: float, front_end: FrontEnd) -> Float32:
    """Normalised log-mel of the newest window at ``now_s``. Returns (frames, mels). Sound starts at the clip's 0 s, and the
    window's frames lie on the clip's own hop grid, so that a stream computes the same."""
    config = front_end.log_mel
    newest = config.frames_in(min(round(now_s * SAMPLE_RATE_HZ), samples.size))
    oldest = max(0, newest - front_end.audio_window_frames)
    span = samples[
        oldest * config.hop_samples : oldest * config.hop_samples + config.samples_for(newest - oldest)
    ]
    return normalised_window(log_mel(span, config), front_end.audio_window_frames, config)


def _no_frames(front_end: FrontEnd) -> tuple[Float32, Float32]:
    side = front_end.image.side_px
    return np.zeros((0, 3, side, side), np.float32), np.zeros(0, np.float32)


def _visual_window(clip: Clip, now_s: float, front_end: FrontEnd) -> tuple[Float32, Float32]:
    """Each grid point shows the newest frame at or before it; a point before the first frame is left out."""
    windows = front_end.windows
    times = np.asarray(clip.frame_times_s)
    newest = grid_index(now_s, windows.frame_hop_s)
    last = (
        int(np.searchsorted(times, now_s + 1e-6, side="right")) - 1
    )  # a later frame may not matter: a stream has none
    if last >= 0:  # nor does the window go on beyond the grid point that first shows the last frame
        newest = min(newest, math.ceil(times[last] / windows.frame_hop_s - 1e-6))
    shown: list[tuple[float, int]] = []
    for index in window_frame_indices(newest, windows):
        time_s = index * windows.frame_hop_s
        frame = int(np.searchsorted(times, time_s + 1e-6, side="right")) - 1
        if frame >= 0:
            shown.append((time_s, frame))
    if not shown:  # the window lies before the first frame: that frame is all there is to see
        shown = [(float(times[0]), 0)]
    pixels = np.stack([prepare_frame(clip.frames[frame], front_end.image) for _, frame in shown])
    return pixels, np.array([max(0.0, now_s - time_s) for time_s, _ in shown], np.float32)
