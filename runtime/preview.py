"""The camera's newest picture as JPEG, for a page that may show it. Kept in memory only, and only where the operator asked for it."""

from __future__ import annotations

import cv2

from runtime.messages import Frame

WIDTH_PX = 480
QUALITY = 70


class Preview:
    """``newest`` is set by the perception loop; calling it, by the page's thread, gives a JPEG, or None while there is no picture."""

    newest: Frame | None = None

    def __call__(self) -> bytes | None:
        frame = self.newest
        if frame is None:
            return None
        picture = frame.picture()  # (H, W, 3) uint8 RGB
        height, width = picture.shape[:2]
        size = (WIDTH_PX, max(1, round(height * WIDTH_PX / width)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        encoded, jpeg = cv2.imencode(".jpg", small[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
        return jpeg.tobytes() if encoded else None
