"""Configuration of the camera and the microphone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vaemotion.contract.settings import demand, within

NONE = "none"  # a device that is not configured
CAMERAS = (
    'a path such as "/dev/v4l/by-id/...", an index, "rtsp://...", "http://...", "csi:0", '
    '"gst:PIPELINE" or "none"'
)
_CAMERA = re.compile(r"none|[0-9]{1,3}|/.+|rtsps?://.+|https?://.+|csi:[0-9]{1,2}|gst:.+")


@dataclass(frozen=True)
class CameraConfig:
    """Settings of the camera.

    ``offset_ms``: time from a frame's exposure to its arrival, subtracted from its stamp. ``freeze_s``: a
    camera without a new frame for longer is frozen, unless it is slower by itself; 0: equal frames are
    allowed, as from a captured screen. ``open_s``: time for a network camera to answer and to begin; after
    tries that were too short it is doubled, up to eightfold.
    """

    device: str = "0"
    width_px: int = 1280
    height_px: int = 720
    frame_rate_hz: float = 30.0
    rotate_degrees: int = 0
    offset_ms: float = 0.0
    freeze_s: float = 0.8
    open_s: float = 5.0

    def __post_init__(self) -> None:
        demand(
            self,
            ("device", _CAMERA.fullmatch(self.device) is not None, CAMERAS),
            ("rotate_degrees", self.rotate_degrees in (0, 90, 180, 270), "0, 90, 180 or 270"),
            *within(
                self,
                width_px=(16, 7680),
                height_px=(16, 4320),
                frame_rate_hz=(0.1, 240),
                offset_ms=(-2000, 2000),
                freeze_s=(0.2, 30) if self.freeze_s else (0, 0),
                open_s=(0.1, 60),
            ),
        )


@dataclass(frozen=True)
class MicrophoneConfig:
    """Settings of the microphone.

    ``offset_ms``: as the camera's; ``noise_floor_dbfs``: level of the silent room, above which sound
    counts as activity.
    """

    device: str = "default"
    offset_ms: float = 0.0
    noise_floor_dbfs: float = -60.0

    def __post_init__(self) -> None:
        demand(
            self,
            ("device", bool(self.device.strip()), 'a name, a part of one, an index, "default" or "none"'),
            *within(self, offset_ms=(-2000, 2000), noise_floor_dbfs=(-120, 0)),
        )
