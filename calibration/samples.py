"""Calibration windows: real inputs through the device's own front end, and their coverage.

In: a front end, and a manifest with its media root or, for a checkpoint trained on it, procedural art. Out:
``Sample`` records, the same for the same seed.

All of them are of the split ``train``. Their content hashes show whether an evaluation uses one of them,
too. Silence, noise and darkness are among them, because a gallery has all three, and every emotion class
that the source has.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vaemotion.contract import prompts
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.emotions import EMOTIONS, emotion_distribution
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import Clip, EncoderInputs, FrontEnd, window_at
from vaemotion.contract.windows import grid_index, window_frame_indices
from vaemotion.data.art.art import Work, draw_frame, sample_work, synthesize, work_seed
from vaemotion.data.instructions import true_answer
from vaemotion.data.manifest.item import Item, label_at
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest

EXTREMES = ("silence", "noise", "darkness")
MOST_PER_EXTREME = 8
LEAST_PER_EMOTION = 8
_SEARCHED_WORKS = 20_000
NOISE_RMS = 0.1  # -20 dB of full scale


@dataclass(frozen=True)
class Sample:
    """A calibration window.

    ``kind``: "scene" or one of ``EXTREMES``. ``emotion``: the strongest of the nine, None where it is not
    known. ``sha256``: of the clip's frames and audio samples.
    """

    kind: str
    emotion: str | None
    sha256: str
    inputs: EncoderInputs


def content_hash(clip: Clip) -> str:
    """Return the sha256 over a clip's frames and audio samples, whatever file they came from."""
    digest = hashlib.sha256()
    for frame in clip.frames:
        digest.update(frame.tobytes())
    digest.update(b"" if clip.samples is None else clip.samples.tobytes())
    return digest.hexdigest()


def procedural_window_clip(work: Work, front_end: FrontEnd, seed: int) -> Clip:
    """Return a clip of a procedural work that ends at a time drawn from ``seed`` and the work.

    It holds the audio from the start of the work, and the frames of the last visual window.
    """
    windows = front_end.windows
    earliest_s = max(front_end.filled_audio_window_s, windows.visual_window_s) + windows.frame_hop_s
    rng = np.random.default_rng([seed, 17, work.seed])
    newest = grid_index(earliest_s + float(rng.uniform(0, 0.5)), windows.frame_hop_s)
    times_s = [index * windows.frame_hop_s for index in window_frame_indices(newest, windows)]
    frames = tuple(draw_frame(work, time_s) for time_s in times_s)
    return Clip(frames, tuple(times_s), synthesize(work, times_s[-1]))


def procedural_samples(front_end: FrontEnd, count: int, seed: int = 0) -> Iterator[Sample]:
    """Yield ``count`` scenes of procedural art's training split, and then windows of each extreme.

    At least ``LEAST_PER_EMOTION`` scenes are of each emotion, where ``count`` allows it.
    """
    works = _balanced_works(count, seed)
    for work in works:
        clip = procedural_window_clip(work, front_end, seed)
        yield _sample("scene", emotion_of(work), clip, front_end)
    for number, kind in enumerate(EXTREMES * per_extreme(count)):
        clip = extreme_clip(
            kind, procedural_window_clip(works[number % len(works)], front_end, seed), seed + number
        )
        yield _sample(kind, None, clip, front_end)


def per_extreme(count: int) -> int:
    """Return how many windows each extreme gets: ``count`` / 8, at least 2, at most ``MOST_PER_EXTREME``."""
    return min(max(2, count // 8), MOST_PER_EXTREME)


def _balanced_works(count: int, seed: int) -> list[Work]:
    """Choose works of the training split: ``LEAST_PER_EMOTION`` of each emotion, then the first others.

    A small ``count`` takes fewer of each emotion.
    """
    least = min(LEAST_PER_EMOTION, count // len(EMOTIONS))
    seen: Counter[str] = Counter()
    chosen: dict[int, Work] = {}
    for index in range(_SEARCHED_WORKS):
        if all(seen[name] >= least for name in EMOTIONS):
            break
        work = sample_work(work_seed("train", seed * _SEARCHED_WORKS + index))
        if seen[emotion_of(work)] < least:
            seen[emotion_of(work)] += 1
            chosen[index] = work
    for index in range(count):
        if len(chosen) < count and index not in chosen:
            chosen[index] = sample_work(work_seed("train", seed * _SEARCHED_WORKS + index))
    return list(chosen.values())


def emotion_of(work: Work) -> str:
    """Name the strongest of the nine emotions of a work."""
    return true_answer(work, prompts.EMOTION)


def extreme_clip(kind: str, clip: Clip, seed: int) -> Clip:
    """Return ``clip`` with silent audio, white noise or black frames, by ``kind`` (one of ``EXTREMES``)."""
    assert clip.samples is not None
    if kind == "darkness":
        return Clip(tuple(np.zeros_like(f) for f in clip.frames), clip.frame_times_s, clip.samples)
    noise = np.random.default_rng([seed, 23]).normal(0, NOISE_RMS, len(clip.samples))
    samples = np.zeros(len(clip.samples)) if kind == "silence" else np.clip(noise, -1, 1)
    return Clip(clip.frames, clip.frame_times_s, samples.astype(np.float32))


def training_items(manifest: Path, media_root: Path, count: int, seed: int = 0) -> list[Item]:
    """Choose the item of each calibration window from a manifest's split ``train``, in a seeded order.

    Returns ``count`` items, the same ones again where the split has fewer. Raises UserError when it is empty.
    """
    items = [item for item in read_manifest(manifest, media_root) if item.split == "train"]
    if not items:
        raise UserError(f"{manifest} has no item in its split 'train'; calibration takes no other")
    order = np.random.default_rng([seed, 29]).permutation(len(items))
    return [items[order[number % len(items)]] for number in range(count)]


def manifest_samples(
    items: Sequence[Item], media_root: Path, front_end: FrontEnd, seed: int = 0
) -> Iterator[Sample]:
    """Yield one window of each item, then the extremes of the last one that has frames and audio."""
    length_s = max(front_end.filled_audio_window_s, front_end.windows.visual_window_s)
    last: Clip | None = None
    for number, item in enumerate(items):
        clip = load_clip(item, media_root, front_end.windows.frame_hop_s)
        path = (
            "audio-visual"
            if clip.frames and clip.samples is not None
            else "visual"
            if clip.frames
            else "audio"
        )
        rng = np.random.default_rng([seed, 31, number])
        now_s = float(rng.uniform(min(length_s, clip.duration_s), max(clip.duration_s, 1 / SAMPLE_RATE_HZ)))
        last = clip if path == "audio-visual" else last
        inputs = window_at(clip, now_s, path, front_end)
        yield Sample("scene", _labeled_emotion(item, now_s), content_hash(clip), inputs)
    for number, kind in enumerate(EXTREMES * per_extreme(len(items))):
        if last is not None:
            yield _sample(kind, None, extreme_clip(kind, last, seed + number), front_end)


def _labeled_emotion(item: Item, now_s: float) -> str | None:
    """Name the strongest of the nine emotions of a window that ends at ``now_s``, as far as it is known."""
    if item.emotion_distribution is not None and item.emotion_names in (None, EMOTIONS):
        return EMOTIONS[int(np.argmax(item.emotion_distribution))]
    valence, arousal = label_at(item, now_s)
    if valence is None or arousal is None:
        return None
    return EMOTIONS[int(np.argmax(emotion_distribution(valence, arousal)))]


def _sample(kind: str, emotion: str | None, clip: Clip, front_end: FrontEnd) -> Sample:
    return Sample(
        kind, emotion, content_hash(clip), window_at(clip, clip.duration_s, "audio-visual", front_end)
    )


def coverage(samples: Sequence[Sample]) -> dict[str, Any]:
    """Describe the samples for a bundle's manifest, as JSON values.

    Counts by kind and emotion, missing emotions, the ranges of log-mel and pixels, and every content hash.
    """
    emotions = Counter(s.emotion for s in samples if s.emotion is not None)
    mels = [s.inputs.log_mel for s in samples if s.inputs.log_mel.size]
    pixels = [s.inputs.pixels for s in samples if s.inputs.pixels.size]
    return {
        "windows": len(samples),
        "kinds": dict(Counter(s.kind for s in samples)),
        "emotions": {name: emotions[name] for name in EMOTIONS},
        "missing_emotions": [name for name in EMOTIONS if not emotions[name]],
        "log_mel_range": _range(mels),
        "pixel_range": _range(pixels),
        "sha256": sorted({s.sha256 for s in samples}),
    }


def _range(arrays: Sequence[npt.NDArray[Any]]) -> list[float]:
    """Return [smallest, largest] over all arrays; [] for none."""
    pairs = [(float(a.min()), float(a.max())) for a in arrays]
    return [min(p[0] for p in pairs), max(p[1] for p in pairs)] if pairs else []


def refuse_overlap(samples: Sequence[Sample], evaluated: Iterable[str]) -> None:
    """Raise UserError when a calibration window has the content hash of an evaluated one."""
    if shared := {s.sha256 for s in samples} & set(evaluated):
        raise UserError(
            f"{len(shared)} calibration windows have the same content as windows that judge the export "
            f"(sha256 {min(shared)[:12]}…); remove them from the calibration manifest"
        )
