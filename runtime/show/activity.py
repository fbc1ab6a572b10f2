"""Measures of activity: motion in the frame and sound in the room, each in [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from runtime.messages import Picture

Float32 = npt.NDArray[np.float32]
SHRUNK_PX = (32, 18)  # width, height: coarse enough that a camera's noise averages out
FULL_FRAME_CHANGE = 0.05  # mean change of luminance that is activity 1; noise is about 0.001
FULL_SOUND_DB = 30.0  # level above the noise floor that is activity 1


def shrink(rgb: Picture) -> Float32:
    """Reduce a frame (H, W, 3) uint8 RGB to (18, 32) float32 luminance (BT.601) in [0, 1]."""
    small = cv2.resize(rgb, SHRUNK_PX, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)


def frame_change(before: Float32, after: Float32) -> float:
    """Return the mean absolute difference of luminance of two frames from ``shrink``, in [0, 1]."""
    return float(np.abs(after - before).mean())


def frame_activity(before: Float32, after: Float32) -> float:
    """Return ``frame_change`` as a share of ``FULL_FRAME_CHANGE``, at most 1."""
    return min(1.0, frame_change(before, after) / FULL_FRAME_CHANGE)


def sound_activity(level_dbfs: float, floor_dbfs: float) -> float:
    """Return the level above the room's noise floor as a share of ``FULL_SOUND_DB``, in [0, 1]."""
    return min(1.0, max(0.0, (level_dbfs - floor_dbfs) / FULL_SOUND_DB))
