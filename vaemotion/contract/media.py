"""Rules that every decoder of media shares: frames upright and in RGB, unusable files refused by name.

Training and evaluation decode whole clips (``vaemotion.data.manifest.loader``). The device decodes a stream
(``runtime.sources.file``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vaemotion.contract.errors import UserError
from vaemotion.contract.image import rotate

GAP_S = 0.02  # timestamps of sound jitter by less; a larger gap is filled with silence


class MediaError(UserError):
    """A medium that is missing, truncated, empty or cannot be decoded."""


def refuse_unusable(path: Path) -> None:
    """Raise MediaError for a file that is missing, empty, or shorter than its header says."""
    if not path.is_file():
        raise MediaError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    size = path.stat().st_size
    if size == 0:
        raise MediaError(f"{path} is empty")
    with path.open("rb") as file:
        head = file.read(8)
    # FFmpeg takes a WAV's length from the file, not from its header. 0 and 0xFFFFFFFF stand for a stream.
    promised = 8 + int.from_bytes(head[4:], "little") if head.startswith(b"RIFF") else 0
    if size < promised < 0xFFFFFFFF:
        raise MediaError(f"{path} is truncated: it holds {size} of {promised} bytes")


def upright(frame: Any, converter: Any = None) -> npt.NDArray[np.uint8]:
    """Convert a decoded frame (``av.VideoFrame``) to (H, W, 3) uint8 RGB, rotated as a player shows it.

    ``converter``: a ``VideoReformatter`` that the stream keeps, so that it is set up once and not for each
    frame. One thread at a time may use it.
    """
    rgb = frame.reformat(format="rgb24") if converter is None else converter.reformat(frame, format="rgb24")
    image = np.asarray(rgb.to_ndarray(), np.uint8)
    # FFmpeg's display matrix turns counterclockwise. Cameras write quarter turns only.
    return rotate(image, -90 * round(frame.rotation / 90))


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB, with EXIF orientation applied and alpha on white.

    Raises MediaError for a file that is missing, truncated or no image.
    """
    refuse_unusable(path)
    data = path.read_bytes()
    if _ends_early(data):
        raise MediaError(f"{path} is truncated: the image's end is missing")
    encoded = np.frombuffer(data, np.uint8)
    raw = _imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if raw is not None and raw.ndim == 3 and raw.shape[2] == 4:
        return _on_white(raw)
    # Decoded again: IMREAD_COLOR applies EXIF's orientation and converts 16 bits and gray to 8-bit color.
    color = _imdecode(encoded, cv2.IMREAD_COLOR)
    if raw is None or color is None:
        raise MediaError(f"{path} cannot be decoded as an image")
    return np.asarray(cv2.cvtColor(color, cv2.COLOR_BGR2RGB), np.uint8)


def _imdecode(encoded: npt.NDArray[np.uint8], flags: int) -> npt.NDArray[Any] | None:
    try:
        return cv2.imdecode(encoded, flags)
    except cv2.error:  # some decoders raise where others return None
        return None


def _on_white(bgra: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    scaled = bgra.astype(np.float32) / np.iinfo(bgra.dtype).max  # (H, W, 4) in [0, 1]
    rgb, alpha = scaled[..., 2::-1], scaled[..., 3:]
    return np.round(255 * (rgb * alpha + (1 - alpha))).astype(np.uint8)


def _ends_early(data: bytes) -> bool:
    """Return True for a JPEG or PNG without its end mark; OpenCV would fill the rest with gray."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        if data[position + 1] == 0xDA:  # start of scan; before it an end mark may be a thumbnail's
            return b"\xff\xd9" not in data[position:]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True
