"""A camera as a stream of pictures: USB (V4L2), network (RTSP, MJPEG over HTTP), or whatever GStreamer can open (CSI).

In: the camera's configuration. Out: ``Frame``, stamped when the picture came less the time that it was under way, and only pictures that show what is
before the camera now. A camera that is absent, gone or dead raises ``DeviceError``; ``runtime.live`` opens it again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError, InvalidDataError

from runtime.clock import Clock
from runtime.config import CameraConfig
from runtime.gstreamer import raw_pictures
from runtime.live import DeviceError
from runtime.messages import Frame, Picture, once
from vaemotion.contract.image import rotate
from vaemotion.contract.media import upright

OPEN_S = 5.0  # for a network camera to answer
ANALYSE_S = 0.5  # FFmpeg may look at a stream for so long before it gives pictures
SILENT_S = 2.0  # a camera that gave nothing for so long is opened again
OLD_S = 0.5  # a picture that was under way this much longer than the fastest ones is old
OLD_LIMIT_S = (
    2.0  # of nothing but old pictures: then the stream is opened anew, and with it the sender's queue
)
SAME_LIMIT_S = 30.0  # of one and the same picture: then the driver may need a new beginning
MAX_DRIFT = 1e-3  # s per s by which a sender's clock may be off

Surface = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Shot:
    """A picture as its device gave it. ``surface``: (H, W) or (H, W, 3) uint8, by which it is told from another; ``sent_s``: the sender's own
    time stamp, where that can be believed."""

    surface: Surface
    picture: Callable[[], Picture]
    sent_s: float | None = None


def camera_stream(config: CameraConfig, clock: Clock, stop: threading.Event) -> Iterator[Frame]:
    """What the camera sees, until ``stop`` is set. Raises DeviceError when the camera is not there, or no longer."""
    freshness = Freshness(repeats=config.freeze_s == 0)
    with contextlib.closing(_open(config, stop)) as shots:
        for shot in shots:
            if stop.is_set():
                return
            arrival_s = clock.now_s()
            if freshness.is_new(shot.surface, shot.sent_s, arrival_s):
                yield Frame(arrival_s - config.offset_ms / 1000, once(shot.picture))


class Freshness:
    """Whether a picture is evidence of what is before the camera now: no thread, no clock, no device.

    One that equals the picture before it is none, because a frozen camera sends its last picture again and again; so the first one is none
    either. ``repeats``: equal pictures are all right, a slide or a screen is captured. And a sender that was frozen, or a network that was, delivers
    old pictures first: by the sender's stamps they were under way longer than the fastest ones (the lower envelope of arrival minus stamp).
    """

    def __init__(self, *, repeats: bool = False) -> None:
        self._repeats = repeats
        self._seen: Surface | None = None
        self._fastest: tuple[float, float] | None = None  # delay, and when it was known
        self._newest_s: float | None = None

    def is_new(self, surface: Surface, sent_s: float | None, arrival_s: float) -> bool:
        """Raises DeviceError when nothing was new for so long that the camera should be opened again."""
        late_s = 0.0 if sent_s is None else self._late_s(arrival_s - sent_s, arrival_s)
        same = not self._repeats and (self._seen is None or _equal(self._seen, surface))
        self._seen = surface
        if self._newest_s is None or not (same or late_s > OLD_S):
            self._newest_s = arrival_s
        silent_s = arrival_s - self._newest_s
        if late_s > OLD_S and silent_s > OLD_LIMIT_S:
            raise DeviceError(f"its pictures come {late_s:.1f} s late")
        if silent_s > SAME_LIMIT_S:
            raise DeviceError(f"it gave the same picture for {SAME_LIMIT_S:g} s")
        return not same and late_s <= OLD_S

    def _late_s(self, delay_s: float, arrival_s: float) -> float:
        """By how much a delay is longer than the shortest, which may grow as the sender's clock drifts."""
        least_s = delay_s
        if self._fastest is not None:
            before_s, then_s = self._fastest
            least_s = min(delay_s, before_s + MAX_DRIFT * (arrival_s - then_s))
        self._fastest = (least_s, arrival_s)
        return delay_s - least_s


def _equal(a: Surface, b: Surface) -> bool:
    return a.shape == b.shape and cv2.norm(a, b, cv2.NORM_INF) == 0


def _open(config: CameraConfig, stop: threading.Event) -> Generator[_Shot]:
    if config.device.startswith(("gst:", "csi:")):
        return _from_gstreamer(config, stop)
    return _from_network(config) if "://" in config.device else _from_v4l2(config)


def _from_v4l2(config: CameraConfig) -> Generator[_Shot]:
    node = f"/dev/video{config.device}" if config.device.isdecimal() else config.device
    if not os.path.exists(node):
        raise DeviceError(f"there is no {node}")
    if not os.access(node, os.R_OK | os.W_OK):
        raise DeviceError(f"this user may not open {node}: add it to the group video")
    # OpenCV waits 10 s for a picture and reports each failure on stderr, once a second for weeks.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", f"{SILENT_S:.0f}")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(os.path.realpath(node), cv2.CAP_V4L2)
    try:
        if not capture.isOpened():
            raise DeviceError(f"{node} cannot be opened: it is no camera, or another program has it")
        capture.set(
            cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")
        )  # raw pictures are too many for USB 2
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width_px)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height_px)
        capture.set(cv2.CAP_PROP_FPS, config.frame_rate_hz)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)  # one that is filled, one that is read
        while True:
            whole, picture = capture.read()
            if not whole:
                raise DeviceError("it gives no pictures any more")
            bgr = np.asarray(picture, np.uint8)  # (H, W, 3)
            yield _Shot(bgr, partial(_from_bgr, bgr, config.rotate_degrees))
    finally:
        capture.release()


def _from_bgr(bgr: Surface, clockwise_degrees: int) -> Picture:
    return rotate(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), clockwise_degrees)


def _from_network(config: CameraConfig) -> Generator[_Shot]:
    """By PyAV, which says why a stream cannot be opened; OpenCV's reader is the same FFmpeg without the reasons. The address stays out of every
    message, because it may hold a password."""
    stamped = config.device.startswith("rtsp")  # MJPEG has no time stamps, FFmpeg makes them up
    options = {"analyzeduration": f"{1e6 * ANALYSE_S:.0f}"} | ({"rtsp_transport": "tcp"} if stamped else {})
    since_s, limit_s = time.monotonic(), OPEN_S
    try:
        with av.open(config.device, options=options, timeout=(OPEN_S, SILENT_S)) as container:
            if not container.streams.video:
                raise DeviceError("the stream holds no pictures")
            since_s, limit_s = time.monotonic(), SILENT_S
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    break  # the end; what the decoder still holds is old
                since_s = time.monotonic()
                for frame in _decoded(packet):
                    sent_s = frame.time if stamped else None
                    yield _Shot(_luma(frame), partial(_from_av, frame, config.rotate_degrees), sent_s)
    except FFmpegError as error:
        reason = error.strerror or type(error).__name__
    else:
        reason = "the stream ended"
    # FFmpeg calls a time that ran out the end, damage or an exit, as it comes.
    late = time.monotonic() - since_s > limit_s
    raise DeviceError(f"it gave nothing for {limit_s:g} s" if late else reason.lower())


def _decoded(packet: Any) -> list[av.VideoFrame]:
    """A packet's pictures; none of one that is damaged."""
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except InvalidDataError:
        return []


def _from_av(frame: av.VideoFrame, clockwise_degrees: int) -> Picture:
    return rotate(upright(frame), clockwise_degrees)


def _luma(frame: av.VideoFrame) -> Surface:
    """The first plane without a copy and without the padding of its rows. Returns (H, W) uint8."""
    plane: Any = frame.planes[0]  # a buffer, of which its stubs do not tell
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _from_gstreamer(config: CameraConfig, stop: threading.Event) -> Generator[_Shot]:
    for rgb in raw_pictures(config, stop):
        yield _Shot(rgb, partial(rotate, rgb, config.rotate_degrees))
