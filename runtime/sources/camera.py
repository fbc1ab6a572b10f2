"""A camera as a stream of frames: USB (V4L2), network (RTSP, MJPEG over HTTP), or GStreamer (CSI).

In: the camera's configuration. Out: ``Frame``, stamped with its arrival less the configured transport
time, and only frames that show the present scene (``StaleFrameFilter``). An absent, lost or dead camera
raises ``DeviceError``; ``runtime.sources.supervision`` opens it again.
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
from runtime.messages import Frame, Picture, once
from runtime.sources.config import CameraConfig
from runtime.sources.gstreamer import gstreamer_frames
from runtime.sources.supervision import DeviceError
from vaemotion.contract.image import rotate
from vaemotion.contract.media import upright

OPEN_S = 5.0  # for a network camera to answer
ANALYZE_S = 0.5  # FFmpeg may analyze a stream for so long before its first frame
SILENT_S = 2.0  # a camera without data for longer is opened again
OLD_S = 0.5  # a frame that took this much longer than the fastest ones is stale
OLD_LIMIT_S = 2.0  # of stale frames only: then the stream, and with it the sender's queue, is opened anew
SAME_LIMIT_S = 30.0  # of equal frames only: then the driver may need a restart
MAX_DRIFT = 1e-3  # s per s by which a sender's clock may be off

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _RawFrame:
    """A frame as its device gave it.

    ``plane``: (H, W) or (H, W, 3) uint8, by which frames are compared; ``picture``: converts it to RGB;
    ``sent_s``: the sender's time stamp, None where there is no reliable one.
    """

    plane: Plane
    picture: Callable[[], Picture]
    sent_s: float | None = None


def camera_stream(config: CameraConfig, clock: Clock, stop: threading.Event) -> Iterator[Frame]:
    """Yield the camera's fresh frames until ``stop`` is set. Raises DeviceError for a lost camera."""
    stale_filter = StaleFrameFilter(allow_equal=config.freeze_s == 0)
    with contextlib.closing(_open(config, stop)) as raw_frames:
        for raw in raw_frames:
            if stop.is_set():
                return
            arrival_s = clock.now_s()
            if stale_filter.is_fresh(raw.plane, raw.sent_s, arrival_s):
                yield Frame(arrival_s - config.offset_ms / 1000, once(raw.picture))


class StaleFrameFilter:
    """A test of whether a frame shows the present scene: no thread, no clock, no device.

    A frame that equals the frame before it is stale, because a frozen camera sends its last frame again and
    again; so the first frame is stale, too. ``allow_equal``: equal frames are fresh, as from a captured slide
    or screen. A sender or a network that was frozen delivers old frames first: by the sender's stamps they
    took longer than the fastest ones (the lower envelope of arrival minus stamp).
    """

    def __init__(self, *, allow_equal: bool = False) -> None:
        self._allow_equal = allow_equal
        self._before: Plane | None = None
        self._fastest: tuple[float, float] | None = None  # shortest delay, and the time it was updated
        self._newest_s: float | None = None

    def is_fresh(self, plane: Plane, sent_s: float | None, arrival_s: float) -> bool:
        """Return True for a fresh frame.

        Raises DeviceError when no frame was fresh for so long that the camera should be opened again.
        """
        late_s = 0.0 if sent_s is None else self._late_s(arrival_s - sent_s, arrival_s)
        same = not self._allow_equal and (self._before is None or _equal(self._before, plane))
        self._before = plane
        if self._newest_s is None or not (same or late_s > OLD_S):
            self._newest_s = arrival_s
        stale_s = arrival_s - self._newest_s
        if late_s > OLD_S and stale_s > OLD_LIMIT_S:
            raise DeviceError(f"its frames come {late_s:.1f} s late")
        if stale_s > SAME_LIMIT_S:
            raise DeviceError(f"the same frame for {SAME_LIMIT_S:g} s")
        return not same and late_s <= OLD_S

    def _late_s(self, delay_s: float, arrival_s: float) -> float:
        """Return the excess over the shortest delay, which may grow as the sender's clock drifts."""
        least_s = delay_s
        if self._fastest is not None:
            before_s, then_s = self._fastest
            least_s = min(delay_s, before_s + MAX_DRIFT * (arrival_s - then_s))
        self._fastest = (least_s, arrival_s)
        return delay_s - least_s


def _equal(a: Plane, b: Plane) -> bool:
    return a.shape == b.shape and cv2.norm(a, b, cv2.NORM_INF) == 0


def _open(config: CameraConfig, stop: threading.Event) -> Generator[_RawFrame]:
    if config.device.startswith(("gst:", "csi:")):
        return _from_gstreamer(config, stop)
    return _from_network(config) if "://" in config.device else _from_v4l2(config)


def _from_v4l2(config: CameraConfig) -> Generator[_RawFrame]:
    node = f"/dev/video{config.device}" if config.device.isdecimal() else config.device
    if not os.path.exists(node):
        raise DeviceError(f"there is no {node}")
    if not os.access(node, os.R_OK | os.W_OK):
        raise DeviceError(f"this user may not open {node}: add it to the group video")
    # OpenCV waits 10 s for a frame and reports each failure on stderr, once a second for weeks.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", f"{SILENT_S:.0f}")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(os.path.realpath(node), cv2.CAP_V4L2)
    try:
        if not capture.isOpened():
            raise DeviceError(f"{node} cannot be opened: not a camera, or in use by another program")
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))  # raw frames exceed USB 2
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width_px)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height_px)
        capture.set(cv2.CAP_PROP_FPS, config.frame_rate_hz)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)  # one being filled, one being read
        while True:
            whole, image = capture.read()
            if not whole:
                raise DeviceError("no more frames")
            bgr = np.asarray(image, np.uint8)  # (H, W, 3)
            yield _RawFrame(bgr, partial(_from_bgr, bgr, config.rotate_degrees))
    finally:
        capture.release()


def _from_bgr(bgr: Plane, clockwise_degrees: int) -> Picture:
    return rotate(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), clockwise_degrees)


def _from_network(config: CameraConfig) -> Generator[_RawFrame]:
    """Yield frames through PyAV, which says why a stream cannot be opened; OpenCV's reader does not.

    The address stays out of every message, because it may hold a password.
    """
    stamped = config.device.startswith("rtsp")  # MJPEG has no time stamps; FFmpeg invents them
    options = {"analyzeduration": f"{1e6 * ANALYZE_S:.0f}"} | ({"rtsp_transport": "tcp"} if stamped else {})
    since_s, limit_s = time.monotonic(), OPEN_S
    try:
        with av.open(config.device, options=options, timeout=(OPEN_S, SILENT_S)) as container:
            if not container.streams.video:
                raise DeviceError("the stream holds no video")
            since_s, limit_s = time.monotonic(), SILENT_S
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    break  # the end; frames that the decoder still holds are old
                since_s = time.monotonic()
                for frame in _decoded(packet):
                    sent_s = frame.time if stamped else None
                    yield _RawFrame(_luma(frame), partial(_from_av, frame, config.rotate_degrees), sent_s)
    except FFmpegError as error:
        reason = error.strerror or type(error).__name__
    else:
        reason = "the stream ended"
    # FFmpeg reports a timeout as the end, as damage or as an exit, at random.
    late = time.monotonic() - since_s > limit_s
    raise DeviceError(f"no data for {limit_s:g} s" if late else reason.lower())


def _decoded(packet: Any) -> list[av.VideoFrame]:
    """Return a packet's frames, none for a damaged one."""
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except InvalidDataError:
        return []


def _from_av(frame: av.VideoFrame, clockwise_degrees: int) -> Picture:
    return rotate(upright(frame), clockwise_degrees)


def _luma(frame: av.VideoFrame) -> Plane:
    """Return the first plane (H, W) uint8, without a copy and without the padding of its rows."""
    plane: Any = frame.planes[0]  # a buffer, which PyAV's stubs do not say
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _from_gstreamer(config: CameraConfig, stop: threading.Event) -> Generator[_RawFrame]:
    for rgb in gstreamer_frames(config, stop):
        yield _RawFrame(rgb, partial(rotate, rgb, config.rotate_degrees))
