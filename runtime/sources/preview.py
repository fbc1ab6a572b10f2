"""The camera's newest frame as JPEG, for a web page that may show it.

It is kept in memory only, and only where the operator asked for it.
"""

from __future__ import annotations

import cv2

from runtime.messages import Frame
from runtime.sources.feed import Arrived

WIDTH_PX = 480
QUALITY = 70


class Preview:
    """The newest frame. The session's thread gives it, the page's thread calls for a JPEG."""

    def __init__(self) -> None:
        """Begin without a frame."""
        self.newest: Frame | None = None

    def take(self, arrived: Arrived) -> list[str]:
        """Take the newest frame of a tick; a camera that is lost has none. Returns no notices."""
        if "camera" in arrived.lost:
            self.newest = None
        self.newest = arrived.frame or self.newest
        return []

    def __call__(self) -> bytes | None:
        """Return the newest frame as JPEG; None while there is none that can be converted."""
        frame = self.newest
        if frame is None:
            return None
        try:
            rgb = frame.picture()  # (H, W, 3) uint8
            height, width = rgb.shape[:2]
            size = (WIDTH_PX, max(1, round(height * WIDTH_PX / width)))
            small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
            encoded, jpeg = cv2.imencode(".jpg", small[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
            return jpeg.tobytes() if encoded else None
        except Exception:  # perception tells of a frame that cannot be converted; the page shows the next one
            return None
