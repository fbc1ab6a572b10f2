"""Real recordings for stage 1, paired with clips that the teacher gives the same name (``pairing: matched``).

In: a data manifest whose items have sound and a label. Out: their log-mel, and augmented windows of it. The
label of a recording only selects the frames that the teacher is given. It is never a target itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from vaemotion.contract.audio import log_mel, normalized_window
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest

Float32 = npt.NDArray[np.float32]
# In nepers of power: a crop whose loudest frame lies further below the recording's counts as silence.
_AUDIBLE_RANGE = 6.0


@dataclass(frozen=True)
class Recording:
    """A recording's label and sound."""

    label: str
    log_mel: Float32  # (frames, mels), not normalized, at least one window long


def read_recordings(
    manifest: Path, media_root: Path, front_end: FrontEnd, split: str = "train"
) -> list[Recording]:
    """Read the recordings of a split.

    Raises UsageError for a split without items, and for an item without sound or label.
    """
    chosen = [item for item in read_manifest(manifest, media_root) if item.split == split]
    if not chosen:
        raise UsageError(f"{manifest} has no item of split {split!r}; build it with another held-out fold")
    return [_recording(item, media_root, front_end) for item in track(chosen, "recordings")]


def _recording(item: Item, media_root: Path, front_end: FrontEnd) -> Recording:
    label = item.label or item.answer or (item.options or ("",))[item.answer_index or 0]
    if not label:
        raise UsageError(f"item {item.id!r} has no label; align.recordings needs items that say what sounds")
    samples = load_clip(item, media_root).samples
    if samples is None:
        raise UsageError(f"item {item.id!r} has no sound; align.recordings needs items with sound")
    mel = log_mel(samples, front_end.log_mel)
    missing = front_end.audio_window_frames - len(mel)
    if missing > 0:
        silence = np.full((missing, mel.shape[1]), front_end.log_mel.silence, np.float32)
        mel = np.concatenate([mel, silence])
    return Recording(label, mel)


def strong_augmentation(
    recording: Recording, background: Float32, rng: np.random.Generator, front_end: FrontEnd
) -> Float32:
    """Cut a strongly augmented, normalized window (frames, mels) out of a recording.

    It is cropped anywhere, stretched by up to a quarter, moved by up to three mel bins, equalized, made
    louder or softer, mixed with ``background`` (frames, mels; not normalized) and masked.
    """
    config, frames = front_end.log_mel, front_end.audio_window_frames
    mel = _crop(recording.log_mel, frames, rng)
    mel = _shift_bins(mel, int(rng.integers(-3, 4)))
    bands = np.interp(np.linspace(0, 4, mel.shape[1]), np.arange(5), rng.normal(0, 0.6, 5))  # EQ, nepers
    mel = mel + (bands + rng.uniform(-2.0, 2.0)).astype(np.float32)
    if rng.random() < 0.4:
        below = rng.uniform(1.5, 4.5) + background.max() - mel.max()  # 6 to 20 dB under the recording
        mel = np.logaddexp(mel, background - np.float32(below))
    normal = normalized_window(np.maximum(mel, np.float32(config.silence)), frames, config)
    for axis, longest in ((0, frames // 8), (0, frames // 8), (1, mel.shape[1] // 8), (1, mel.shape[1] // 8)):
        width = int(rng.integers(0, longest + 1))
        start = int(rng.integers(0, normal.shape[axis] - width + 1))
        normal[(slice(None),) * axis + (slice(start, start + width),)] = normal.mean()
    return normal.astype(np.float32)


def _crop(mel: Float32, frames: int, rng: np.random.Generator) -> Float32:
    """Crop an audible part, stretched by 0.8 to 1.25 to ``frames`` frames; the recording wraps around."""
    span = int(np.clip(round(frames * rng.uniform(0.8, 1.25)), 2, len(mel)))
    loudness = mel.mean(axis=1)
    rows = np.arange(span)
    for _ in range(20):
        rows = (int(rng.integers(len(mel))) + np.arange(span)) % len(mel)
        if loudness[rows].max() >= loudness.max() - _AUDIBLE_RANGE:
            break
    positions = np.linspace(0, span - 1, frames)
    low = np.floor(positions).astype(int)
    share = (positions - low).astype(np.float32)[:, None]
    cut = mel[rows]
    return np.asarray((1 - share) * cut[low] + share * cut[np.minimum(low + 1, span - 1)], np.float32)


def _shift_bins(mel: Float32, bins: int) -> Float32:
    """Shift along the mel axis; the edge is repeated."""
    return mel[:, np.clip(np.arange(mel.shape[1]) - bins, 0, mel.shape[1] - 1)]
