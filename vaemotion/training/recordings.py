"""Real recordings beside procedural pictures of the same class, for stage 1 (``pairing: matched``).

In: a data manifest whose items have sound and name a content class. Out: their log-mel, and windows of it as they might sound
elsewhere. The class of a recording only chooses the pictures that the teacher looks at: it is never a target itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from vaemotion.contract.audio import log_mel
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.item import Item
from vaemotion.data.loader import load_clip
from vaemotion.data.manifest import read_manifest
from vaemotion.data.procedural_art import CONTENT_CLASSES

Float32 = npt.NDArray[np.float32]
_AUDIBLE_RANGE = (
    6.0  # nepers of power: a crop whose loudest frame lies further below the recording's is silence
)


@dataclass(frozen=True)
class Recording:
    """``content``: index into ``CONTENT_CLASSES``; ``log_mel`` (frames, mels), not normalised, at least one window long."""

    content: int
    log_mel: Float32


def read_recordings(
    manifest: Path, media_root: Path, front_end: FrontEnd, split: str = "train"
) -> list[Recording]:
    """The recordings of a split. Raises UsageError for an item that names none of our classes."""
    chosen = [item for item in read_manifest(manifest, media_root) if item.split == split]
    if not chosen:
        raise UsageError(f"{manifest} has no item of split {split!r}: build it with another held-out fold")
    return [_recording(item, media_root, front_end) for item in track(chosen, "recordings")]


def _recording(item: Item, media_root: Path, front_end: FrontEnd) -> Recording:
    name = item.answer or (item.options or ("",))[item.answer_index or 0]
    if name not in CONTENT_CLASSES:
        raise UsageError(
            f"item {item.id!r} names {name!r}, for which there are no pictures; known: {', '.join(CONTENT_CLASSES)}"
        )
    samples = load_clip(item, media_root).samples
    if samples is None:
        raise UsageError(f"item {item.id!r} has no sound, and stage 1 wants recordings")
    mel = log_mel(samples, front_end.log_mel)
    missing = front_end.audio_window_frames - len(mel)
    if missing > 0:
        mel = np.concatenate(
            [mel, np.full((missing, mel.shape[1]), np.log(front_end.log_mel.mel_floor), np.float32)]
        )
    return Recording(CONTENT_CLASSES.index(name), mel)


def heard_elsewhere(
    recording: Recording, background: Float32, rng: np.random.Generator, front_end: FrontEnd
) -> Float32:
    """A normalised window (frames, mels) of the recording, strongly augmented: stretched by up to a quarter, cut anywhere, moved
    by up to three mel bins, equalised, louder or softer, over ``background`` (frames, mels; not normalised), with masks."""
    config, frames = front_end.log_mel, front_end.audio_window_frames
    mel = _crop(recording.log_mel, frames, rng)
    mel = _moved(mel, int(rng.integers(-3, 4)))
    bands = np.interp(np.linspace(0, 4, mel.shape[1]), np.arange(5), rng.normal(0, 0.6, 5))  # EQ, nepers
    mel = mel + (bands + rng.uniform(-2.0, 2.0)).astype(np.float32)
    if rng.random() < 0.4:
        below = rng.uniform(1.5, 4.5) + background.max() - mel.max()  # 6 to 20 dB under the recording
        mel = np.logaddexp(mel, background - np.float32(below))
    mel = np.maximum(mel, np.float32(np.log(config.mel_floor)))
    normal = (mel - np.float32(config.mean)) / np.float32(2 * config.std)
    for axis, longest in ((0, frames // 8), (0, frames // 8), (1, mel.shape[1] // 8), (1, mel.shape[1] // 8)):
        width = int(rng.integers(0, longest + 1))
        start = int(rng.integers(0, normal.shape[axis] - width + 1))
        normal[(slice(None),) * axis + (slice(start, start + width),)] = normal.mean()
    return normal.astype(np.float32)


def _crop(mel: Float32, frames: int, rng: np.random.Generator) -> Float32:
    """``frames`` frames from anywhere in which something is heard, stretched by 0.8 to 1.25; the recording goes round."""
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


def _moved(mel: Float32, bins: int) -> Float32:
    """Shifted along the mel axis; the edge is repeated."""
    return mel[:, np.clip(np.arange(mel.shape[1]) - bins, 0, mel.shape[1] - 1)]
