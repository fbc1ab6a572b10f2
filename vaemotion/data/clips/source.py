"""One interface for every source of clips: window i, or a stream of windows.

In: a number below ``len(source)``. Out: a `ClipWindow`, the same one for the same source, seed and number,
whatever process asks. A damaged clip raises `MediaError` there and nothing else. A `ClipStream` (a shard that
comes through a pipe) makes no such promise: its windows come once, in its own order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from vaemotion.contract.front_end import Clip, EncoderInputs, FrontEnd, window_at
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.manifest.item import Item


@dataclass(frozen=True)
class ClipWindow:
    """One window of a clip with its labels.

    ``clip``: decoded from the window's start on, so its times count from there. ``now_s``: the window's end
    in these times. ``start_s``: the window's start in the medium.
    """

    item: Item
    clip: Clip
    now_s: float
    start_s: float = 0.0

    def inputs(self, path: str, front_end: FrontEnd) -> EncoderInputs:
        """Build the encoders' inputs, as ``path`` reads the window."""
        return window_at(self.clip, self.now_s, path, front_end)


class ClipSource(Protocol):
    """Clips by their number. Instances can be sent to worker processes, and are small there."""

    name: str  # for logs, without folders
    identity: str  # everything that the windows depend on, hashed; equal sources have equal windows
    # True for material whose labels are those of `data.art`, which the shipped model learned on.
    procedural: bool

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Return the item of clip ``index``, its labels without its media."""
        ...

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Decode a window of ``span_s`` seconds of clip ``index``; ``seed`` says where in the clip it lies.

        Raises MediaError for a clip that cannot be decoded there, or is shorter than the window.
        """
        ...


@runtime_checkable
class ClipStream(Protocol):
    """Clips in their own order, each once."""

    name: str
    identity: str  # what it reads, hashed

    def windows(self, seed: int, span_s: float) -> Iterator[ClipWindow | DamagedClip]:
        """Decode one window of each clip. What cannot be decoded is a `DamagedClip`."""
        ...


@dataclass(frozen=True)
class DamagedClip:
    """A clip that was left out."""

    name: str  # its id, or the file's name
    reason: str


def window_start_s(clip_s: float, span_s: float, seed: int, index: int) -> float:
    """Draw where in a clip of ``clip_s`` seconds a window of ``span_s`` begins, in seconds from its start."""
    spare_s = max(0.0, clip_s - span_s)
    return float(np.random.default_rng([seed, 16, index]).uniform(0.0, spare_s)) if spare_s else 0.0


def window_span_s(front_end: FrontEnd) -> float:
    """Return the seconds that a window needs: of all its frames, or of its sound, whichever is longer.

    They are a multiple of the frames' grid, so that the window ends on the grid.
    """
    windows = front_end.windows
    needed_s = max(windows.visual_window_s + windows.frame_hop_s, front_end.filled_audio_window_s)
    return math.ceil(needed_s / windows.frame_hop_s - EPSILON_S) * windows.frame_hop_s
