"""Procedural works as clips, drawn and synthesized when they are asked for."""

from __future__ import annotations

import hashlib

import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.front_end import Clip
from vaemotion.contract.windows import WindowConfig
from vaemotion.data.art.art import Work, draw_frame, sample_work, synthesize, work_seed
from vaemotion.data.art.windows import SPREAD_S
from vaemotion.data.clips.source import ClipWindow
from vaemotion.data.manifest.item import Item


class ArtClips:
    """A `ClipSource` of a split's first ``count`` works; only the frames of a window are drawn."""

    procedural = True

    def __init__(self, count: int, split: str, windows: WindowConfig) -> None:
        self._count, self._split, self._windows = count, split, windows
        self.name = f"{count} procedural works"
        self.identity = f"procedural art, {split}, {count}"

    def __len__(self) -> int:
        return self._count

    def work(self, index: int) -> Work:
        """Return the work of clip ``index``."""
        return sample_work(work_seed(self._split, index))

    def item(self, index: int) -> Item:
        """Return the labels of the work of clip ``index``."""
        return item_of(self.work(index), self._split)

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Draw a window of the work; see `ClipSource`. ``span_s``: on the grid of frames."""
        work, windows = self.work(index), self._windows
        start_s = float(np.random.default_rng([seed, 2, work.seed]).uniform(0.0, SPREAD_S))
        oldest_s = span_s - windows.visual_window_s
        times_s = tuple(oldest_s + k * windows.frame_spacing_s for k in range(windows.frames))
        frames = tuple(draw_frame(work, start_s + time_s) for time_s in times_s)
        # From a whole sample on, so that it equals the same part of the whole work.
        sound_from_s = round(start_s * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
        clip = Clip(frames, times_s, synthesize(work, span_s, sound_from_s))
        return ClipWindow(item_of(work, self._split), clip, span_s, start_s)


def item_of(work: Work, split: str) -> Item:
    """Return a work's labels as an item without a medium on disk."""
    name = f"procedural-{work.seed}"
    return Item(
        id=name,
        pairing="synchronised",
        task="clip",
        label=work.content,
        modality="audio-visual",
        valence=work.valence,
        arousal=work.arousal,
        construct="expressed",
        emotion_distribution=tuple(float(share) for share in work.emotion_distribution),
        split=split,
        work_id=name,
        creator_id=name,
        source="procedural-art",
        license="CC0-1.0",
        sha256=hashlib.sha256(name.encode()).hexdigest(),
    )
