"""What every decoder of media must do alike: pictures upright and in RGB, files that cannot be used refused by name.

Training and evaluation decode whole clips (``vaemotion.data.loader``), the device decodes a stream (``runtime.sources``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vaemotion.contract.errors import UserError
from vaemotion.contract.image import rotate

GAP_S = 0.02  # timestamps of sound jitter by less; more is a hole, filled with silence


class MediaError(UserError):
    """A medium that is missing, truncated, empty or no medium."""


def refuse_unusable(path: Path) -> None:
    """Raise MediaError for a file that is missing, empty or visibly shorter than it says."""
    if not path.is_file():
        raise MediaError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    size = path.stat().st_size
    if size == 0:
        raise MediaError(f"{path} is empty")
    with path.open("rb") as file:
        head = file.read(8)
    # FFmpeg takes a WAV's length from the file, not from its header. 0 and 0xFFFFFFFF: written as a stream.
    promised = 8 + int.from_bytes(head[4:], "little") if head.startswith(b"RIFF") else 0
    if size < promised < 0xFFFFFFFF:
        raise MediaError(f"{path} is truncated: it holds {size} of {promised} bytes")


def upright(frame: Any, converter: Any = None) -> npt.NDArray[np.uint8]:
    """A decoded frame (``av.VideoFrame``) as its viewer sees it. Returns (H, W, 3) uint8 RGB. ``converter``: a stream's own
    ``VideoReformatter``, for one thread at a time: it is set up once, and not for each frame."""
    rgb = frame.reformat(format="rgb24") if converter is None else converter.reformat(frame, format="rgb24")
    picture = np.asarray(rgb.to_ndarray(), np.uint8)
    # FFmpeg's display matrix turns counterclockwise; only quarter turns are known to cameras.
    return rotate(picture, -90 * round(frame.rotation / 90))


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Returns (H, W, 3) uint8 RGB. EXIF orientation is applied; alpha lies on white."""
    refuse_unusable(path)
    data = path.read_bytes()
    if _ends_early(data):
        raise MediaError(f"{path} is truncated: the picture's end is missing")
    encoded = np.frombuffer(data, np.uint8)
    raw = _imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if raw is not None and raw.ndim == 3 and raw.shape[2] == 4:
        return _on_white(raw)
    # A second look: IMREAD_COLOR also applies EXIF's orientation and brings 16 bits and grey to 8-bit colour.
    colour = _imdecode(encoded, cv2.IMREAD_COLOR)
    if raw is None or colour is None:
        raise MediaError(f"{path} cannot be decoded as a picture")
    return np.asarray(cv2.cvtColor(colour, cv2.COLOR_BGR2RGB), np.uint8)


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
    """OpenCV fills up truncated JPEG and PNG files with grey, and only prints a warning: look for their end marks."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        if data[position + 1] == 0xDA:  # start of scan: behind it the first end mark is the picture's own
            return b"\xff\xd9" not in data[position:]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True
