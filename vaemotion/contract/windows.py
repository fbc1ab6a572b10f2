"""Window arithmetic: the frames and log-mel frames of the window that ends at a time.

All times count from the start of a clip or stream. Frames lie on a grid: grid point k stands for the time
k * ``frame_hop_s`` and is encoded once. A window is the newest grid point and its predecessors,
``frame_spacing_s`` apart. The audio encoder runs every ``audio_stride_s`` on the newest ``audio_window_s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EPSILON_S = 1e-6  # times closer than this are equal: 0.1 + 0.2 is not 0.3
_EPSILON_HOPS = 1e-9  # the same for a time in hops


@dataclass(frozen=True)
class WindowConfig:
    """Constants of the windows.

    ``frames``: frames in a window; the EmoAdapter reads all of them. ``language_frames``: the newest of
    them that the language model reads. Raises ValueError for values that do not fit together.
    """

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
        """Grid points from one frame of a window to the next."""
        return round(self.frame_spacing_s / self.frame_hop_s)

    @property
    def visual_window_s(self) -> float:
        """Seconds from the oldest to the newest frame of a window."""
        return (self.frames - 1) * self.frame_spacing_s


def grid_index(time_s: float, hop_s: float) -> int:
    """Return the newest grid point at or before ``time_s`` (≥ 0)."""
    return math.floor(time_s / hop_s + _EPSILON_HOPS)


def encode_count(duration_s: float, hop_s: float) -> int:
    """Return the number of grid points of a medium: ceil(duration / hop)."""
    return math.ceil(duration_s / hop_s - _EPSILON_HOPS)


def window_frame_indices(newest: int, config: WindowConfig, oldest: int = 0) -> list[int]:
    """Return the grid points of the window that ends at grid point ``newest``, oldest first.

    Points before ``oldest`` (the start of the clip, or of the cached frames) are left out. The list is
    then shorter than ``config.frames``.
    """
    indices = [newest - k * config.hops_per_spacing for k in range(config.frames)]
    return [i for i in reversed(indices) if i >= oldest]
