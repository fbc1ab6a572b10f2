"""Pictures on their way into the model: rotate, squash to the square, normalise.

In: (H, W, 3) uint8 RGB of any size. Out: (3, side, side) float32. Training and device use this one function; it is
OpenCV's area resampling where the picture shrinks (it antialiases) and linear where it grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

_ROTATIONS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True)
class ImageConfig:
    """``side_px``: picture side. ``mean`` and ``std`` apply to values in [0, 1], one number for all channels."""

    side_px: int = 96
    mean: float = 0.5
    std: float = 0.5


def check_picture(picture: npt.NDArray[np.uint8]) -> None:
    """ValueError unless picture is (H, W, 3) uint8 and not empty: OpenCV would convert in silence."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ValueError(
            f"picture must be (H, W, 3) uint8 RGB, got shape {picture.shape} and {picture.dtype}"
        )


def rotate(picture: npt.NDArray[np.uint8], clockwise_degrees: int) -> npt.NDArray[np.uint8]:
    """Rotate by a multiple of 90 degrees. picture: (H, W, 3)."""
    if clockwise_degrees % 90:
        raise ValueError(f"clockwise_degrees must be a multiple of 90, got {clockwise_degrees}")
    check_picture(picture)
    code = _ROTATIONS.get(clockwise_degrees % 360)
    return picture if code is None else np.asarray(cv2.rotate(picture, code), np.uint8)


def squash(picture: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """Resize to (side, side, 3) without keeping the aspect ratio: area where the picture shrinks in both
    directions, area then linear where it shrinks in one only, linear where it grows."""
    check_picture(picture)
    height, width = picture.shape[:2]
    shrunk = (min(width, side_px), min(height, side_px))
    if shrunk != (width, height):
        picture = np.asarray(cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    if shrunk != (side_px, side_px):
        picture = np.asarray(
            cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_LINEAR), np.uint8
        )
    return picture


def prepare_frame(
    picture: npt.NDArray[np.uint8], config: ImageConfig, clockwise_degrees: int = 0
) -> npt.NDArray[np.float32]:
    """(H, W, 3) uint8 RGB → (3, side, side) float32, normalised."""
    square = squash(rotate(picture, clockwise_degrees), config.side_px)
    # The planes are taken apart while they are bytes: apart as floats they take ten times as long.
    planes = np.stack(cv2.split(square)).astype(np.float32)
    planes *= np.float32(1 / (255 * config.std))
    planes -= np.float32(config.mean / config.std)
    return planes
