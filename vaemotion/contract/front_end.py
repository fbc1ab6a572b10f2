"""The front end: from a decoded clip to the encoders' inputs for the window that ends at a time.

Training, evaluation, calibration and the device build their windows here, from the same constants.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import KALDI, SAMPLE_RATE_HZ, LogMelConfig, sound_window
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.contract.records import strict_record
from vaemotion.contract.settings import shown
from vaemotion.contract.windows import EPSILON_S, WindowConfig, grid_index, window_frame_indices

Float32 = npt.NDArray[np.float32]
PATHS: tuple[str, ...] = ("audio", "visual", "audio-visual")
SILENCE_RMS = 1e-4  # -80 dB of full scale
ZERO_PADDING, SILENT_PADDING = 1, 2  # versions of the front end
# Share of an audio window that must hold sound before a stream that goes on is heard, where training or
# calibration covered windows that are still filling.
LEAST_SOUND_SHARE = 1 / 3


@dataclass(frozen=True)
class FrontEnd:
    """All constants from a medium to the encoders. The checkpoint's config and the manifest store them.

    ``version``: the padding of an audio window that holds less sound than it is long. Version 1 pads with a
    log-mel of 0, which is loud, version 2 with that of silence. A model is read with the version that it was
    trained with. Raises ValueError for any other version.
    """

    log_mel: LogMelConfig = field(default_factory=LogMelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    version: int = SILENT_PADDING

    def __post_init__(self) -> None:
        if self.version not in (ZERO_PADDING, SILENT_PADDING):
            raise ValueError(
                f"front_end.version must be {ZERO_PADDING} or {SILENT_PADDING}, got {shown(self.version)}"
            )

    @property
    def audio_window_frames(self) -> int:
        """Log-mel frames in an audio window."""
        return round(self.windows.audio_window_s / self.log_mel.hop_s)

    @property
    def filled_audio_window_s(self) -> float:
        """Seconds of sound that fill an audio window; Kaldi's last frame is a little longer than a hop."""
        return self.log_mel.samples_for(self.audio_window_frames) / SAMPLE_RATE_HZ

    @property
    def sound_padding(self) -> float:
        """Log-mel that stands for sound that has not come yet."""
        return 0.0 if self.version == ZERO_PADDING else self.log_mel.silence

    @property
    def least_sound_s(self) -> float:
        """Seconds of sound from which a stream is heard, where no calibration says it.

        Version 1 was trained on filled windows, version 2 also on windows that are still filling.
        """
        share = 1.0 if self.version == ZERO_PADDING else LEAST_SOUND_SHARE
        return share * self.windows.audio_window_s

    def held_sound_s(self, n_samples: int) -> float:
        """Return the seconds of sound in the newest window of ``n_samples`` samples at 16 kHz."""
        return min(n_samples / SAMPLE_RATE_HZ, self.windows.audio_window_s)

    def to_dict(self) -> dict[str, Any]:
        """Return the constants as nested dictionaries, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FrontEnd:
        """Return the front end that ``to_dict`` wrote. Raises ValueError for any other fields.

        Checkpoints and bundles that are older than the field ``version`` have version 1, those that are older
        than the kinds of log-mel have Kaldi's.
        """
        parts = {"log_mel": LogMelConfig, "image": ImageConfig, "windows": WindowConfig}
        if "log_mel" in values:
            values = {**values, "log_mel": {"kind": KALDI, **values["log_mel"]}}
        sections = {
            name: strict_record(parts[name], section, f"front_end.{name}") if name in parts else section
            for name, section in values.items()
        }
        return strict_record(cls, {"version": ZERO_PADDING, **sections}, "front_end")


@dataclass(frozen=True)
class Clip:
    """A decoded medium.

    ``frames``: (H, W, 3) uint8 RGB, upright. ``frame_times_s``: (n,) ascending, from the clip's start.
    ``samples``: (m,) float32 at 16 kHz, from the clip's start. An image is one frame at 0 s.
    """

    frames: tuple[npt.NDArray[np.uint8], ...] = ()
    frame_times_s: tuple[float, ...] = ()
    samples: Float32 | None = None

    @property
    def duration_s(self) -> float:
        """The end of the last frame or of the sound, whichever is later. An image alone lasts 0 s."""
        seen_s = self.frame_times_s[-1] if self.frame_times_s else 0.0
        return max(seen_s, 0.0 if self.samples is None else len(self.samples) / SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class EncoderInputs:
    """The encoders' inputs for the window that ends at ``now_s``.

    ``pixels``: (n, 3, side, side), oldest frame first, n may be 0, with ``frame_ages_s`` (n,). ``log_mel``:
    (1, frames, mels), or (0, frames, mels) without sound. The sound ended ``audio_age_s`` before ``now_s``;
    ``sound_s`` seconds of it are in the window, and the rest of a window is padding.
    """

    now_s: float
    pixels: Float32
    frame_ages_s: Float32
    log_mel: Float32
    audio_age_s: float = 0.0
    sound_s: float = math.inf

    def only(self, path: str) -> EncoderInputs:
        """Return the inputs that a path reads."""
        kept = self
        if not reads_frames(path):
            kept = replace(kept, pixels=kept.pixels[:0], frame_ages_s=kept.frame_ages_s[:0])
        return kept if reads_sound(path) else replace(kept, log_mel=kept.log_mel[:0])


def reads_frames(path: str) -> bool:
    """Return True for a path (one of ``PATHS``) that reads frames."""
    return path != "audio"


def reads_sound(path: str) -> bool:
    """Return True for a path (one of ``PATHS``) that reads sound."""
    return path != "visual"


def window_at(clip: Clip, now_s: float, path: str, front_end: FrontEnd) -> EncoderInputs:
    """Build the encoders' inputs for the window that ends at ``now_s``, as ``path`` reads it.

    Raises ValueError for an unknown path, and where the clip lacks what the path needs.
    """
    if path not in PATHS:
        raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
    if reads_sound(path) and clip.samples is None:
        raise ValueError(f"path {path!r} needs sound, but the clip has none")
    if reads_frames(path) and not clip.frames:
        raise ValueError(f"path {path!r} needs frames, but the clip has none")
    side = front_end.image.side_px
    pixels, frame_ages_s = np.zeros((0, 3, side, side), np.float32), np.zeros(0, np.float32)
    if reads_frames(path):
        pixels, frame_ages_s = _visual_window(clip, now_s, front_end)
    mel = np.zeros((0, front_end.audio_window_frames, front_end.log_mel.n_mels), np.float32)
    audio_age_s, sound_s = 0.0, math.inf
    if reads_sound(path) and clip.samples is not None:
        mel = audio_window(clip.samples, now_s, front_end)[None]
        audio_age_s = max(0.0, now_s - len(clip.samples) / SAMPLE_RATE_HZ)
        sound_s = front_end.held_sound_s(min(round(now_s * SAMPLE_RATE_HZ), len(clip.samples)))
    return EncoderInputs(now_s, pixels, frame_ages_s, mel, audio_age_s, sound_s)


def window_ends_s(clip: Clip, path: str, front_end: FrontEnd) -> list[float]:
    """Return the ends of the windows that together cover the clip, ascending, the last at its end.

    Windows overlap by about a half. A clip of about a window's length has one. From sound alone, windows
    at or below ``SILENCE_RMS`` are left out, unless all of them are.
    """
    length_s = front_end.filled_audio_window_s
    count = 1 + max(0, round(2 * (clip.duration_s - length_s) / length_s))
    if count == 1:
        return [clip.duration_s]
    ends_s = [float(end_s) for end_s in np.linspace(length_s, clip.duration_s, count)]
    if path != "audio" or clip.samples is None:
        return ends_s
    samples = clip.samples
    audible = [end_s for end_s in ends_s if _rms(samples, end_s - length_s, end_s) > SILENCE_RMS]
    return audible or ends_s


def _rms(samples: Float32, start_s: float, end_s: float) -> float:
    part = samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    return math.sqrt(float(np.mean(np.square(part, dtype=np.float64)))) if part.size else 0.0


def audio_window(samples: Float32, now_s: float, front_end: FrontEnd) -> Float32:
    """Return the normalized log-mel of the window that ends at ``now_s``, (frames, mels).

    samples: (n,) at 16 kHz from the clip's start. The window's frames lie on the clip's own hop grid, so a
    stream computes the same.
    """
    config = front_end.log_mel
    newest = config.frames_in(min(round(now_s * SAMPLE_RATE_HZ), samples.size))
    oldest = max(0, newest - front_end.audio_window_frames)
    first = oldest * config.hop_samples
    span = samples[first : first + config.samples_for(newest - oldest)]
    return sound_window(span, front_end.audio_window_frames, config, front_end.sound_padding)


def _visual_window(clip: Clip, now_s: float, front_end: FrontEnd) -> tuple[Float32, Float32]:
    """Return pixels (n, 3, side, side) and ages (n,) of the window that ends at ``now_s``.

    Each grid point shows the newest frame at or before it. A point before the first frame is left out.
    """
    windows = front_end.windows
    times = np.asarray(clip.frame_times_s)
    newest = grid_index(now_s, windows.frame_hop_s)
    # Frames after now_s do not count, because a stream does not have them yet.
    last = int(np.searchsorted(times, now_s + EPSILON_S, side="right")) - 1
    if last >= 0:  # the window ends at the grid point that first shows the last frame
        newest = min(newest, math.ceil(times[last] / windows.frame_hop_s - 1e-6))
    shown: list[tuple[float, int]] = []
    for index in window_frame_indices(newest, windows):
        time_s = index * windows.frame_hop_s
        frame = int(np.searchsorted(times, time_s + EPSILON_S, side="right")) - 1
        if frame >= 0:
            shown.append((time_s, frame))
    if not shown:  # the window lies before the first frame: show that one
        shown = [(float(times[0]), 0)]
    pixels = np.stack([prepare_frame(clip.frames[frame], front_end.image) for _, frame in shown])
    return pixels, np.array([max(0.0, now_s - time_s) for time_s, _ in shown], np.float32)
