"""Window arithmetic: which frames and which log-mel frames make the window of a moment.

Everything is counted from the start of a clip (or stream). Pictures live on a grid of ``frame_hop_s``: grid point k
is taken at k * frame_hop_s and encoded once. A window is the newest grid point and its predecessors ``frame_spacing_s``
apart. The audio encoder runs once per ``audio_stride_s`` on the newest ``audio_window_s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_EPSILON = 1e-9  # a time that lies on the grid but for rounding counts as on it


@dataclass(frozen=True)
class WindowConfig:
    """Constants of the windows, in seconds but for ``frames`` (pictures in a window, all of which the EmoAdapter reads)
    and ``language_frames`` (how many of the newest the language model reads)."""

    frame_hop_s: float = 0.1
    frame_spacing_s: float = 0.4
    frames: int = 8
    language_frames: int = 2
    audio_window_s: float = 3.0
    audio_stride_s: float = 0.1

    def __post_init__(self) -> None:
        ratio = self.frame_spacing_s / self.frame_hop_s
        if self.frames < 1 or round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6:
            raise ValueError(
                f"frame_spacing_s ({self.frame_spacing_s}) must be a whole multiple of frame_hop_s "
                f"({self.frame_hop_s}) and frames ({self.frames}) at least 1"
            )
        if not 1 <= self.language_frames <= self.frames:
            raise ValueError(
                f"language_frames must be 1 to {self.frames} (frames), got {self.language_frames}"
            )

    @property
    def hops_per_spacing(self) -> int:
        return round(self.frame_spacing_s / self.frame_hop_s)

    @property
    def visual_window_s(self) -> float:
        """From the oldest to the newest picture of a window."""
        return (self.frames - 1) * self.frame_spacing_s


def grid_index(time_s: float, hop_s: float) -> int:
    """The newest grid point at or before ``time_s`` (≥ 0)."""
    return math.floor(time_s / hop_s + _EPSILON)


def encode_count(duration_s: float, hop_s: float) -> int:
    """How many grid points a medium of ``duration_s`` holds: ceil(duration / hop)."""
    return math.ceil(duration_s / hop_s - _EPSILON)


def window_frame_indices(newest: int, config: WindowConfig, oldest: int = 0) -> list[int]:
    """Grid points of the pictures in the window that ends at grid point ``newest``, oldest first.

    Points before ``oldest`` (the start of the clip, or of what is cached) are left out, so that the list is shorter
    at the start of a clip.
    """
    indices = [newest - k * config.hops_per_spacing for k in range(config.frames)]
    return [i for i in reversed(indices) if i >= oldest]


def ages_s(times_s: list[float], now_s: float) -> list[float]:
    """Age of each time at ``now_s``, never negative."""
    return [max(0.0, now_s - t) for t in times_s]
