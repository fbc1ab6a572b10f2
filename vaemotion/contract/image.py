"""Image front end: rotate, squash to a square, normalize.

In: (H, W, 3) uint8 RGB of any size. Out: (3, side, side) float32. Training and the device use this one path:
OpenCV's area resampling where the image shrinks (it antialiases), linear where it grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

# (H, W, 3) uint8 RGB.
Picture = npt.NDArray[np.uint8]

_ROTATIONS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True)
class ImageConfig:
    """Constants of the image front end.

    ``side_px``: side of the square. ``mean`` and ``std`` apply to values in [0, 1], alike for all channels.
    """

    side_px: int = 96
    mean: float = 0.5
    std: float = 0.5


def check_image(image: npt.NDArray[np.uint8]) -> None:
    """Raise ValueError unless an image is (H, W, 3) uint8 and not empty; OpenCV would convert it silently."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got shape {image.shape} and {image.dtype}")


def rotate(image: npt.NDArray[np.uint8], clockwise_degrees: int) -> npt.NDArray[np.uint8]:
    """Rotate an image (H, W, 3) by a multiple of 90 degrees. Raises ValueError for other angles."""
    if clockwise_degrees % 90:
        raise ValueError(f"clockwise_degrees must be a multiple of 90, got {clockwise_degrees}")
    check_image(image)
    code = _ROTATIONS.get(clockwise_degrees % 360)
    return image if code is None else np.asarray(cv2.rotate(image, code), np.uint8)


def squash(image: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """Resize an image (H, W, 3) to (side, side, 3) without keeping its aspect ratio.

    The resampling is area where the image shrinks, then linear where it grows.
    """
    check_image(image)
    height, width = image.shape[:2]
    shrunk = (min(width, side_px), min(height, side_px))
    if shrunk != (width, height):
        image = np.asarray(cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    if shrunk != (side_px, side_px):
        image = np.asarray(cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_LINEAR), np.uint8)
    return image


def prepare_frame(
    image: npt.NDArray[np.uint8], config: ImageConfig, clockwise_degrees: int = 0
) -> npt.NDArray[np.float32]:
    """Convert an image (H, W, 3) uint8 RGB to normalized planes (3, side, side) float32."""
    square = squash(rotate(image, clockwise_degrees), config.side_px)
    # Splitting bytes into planes takes a tenth of the time of splitting floats.
    planes = np.stack(cv2.split(square)).astype(np.float32)
    planes *= np.float32(1 / (255 * config.std))
    planes -= np.float32(config.mean / config.std)
    return planes
