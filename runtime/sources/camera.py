"""A camera as a stream of frames: USB (V4L2), network (RTSP, MJPEG over HTTP), or GStreamer (CSI).

In: the camera's configuration. Out: ``Frame``, stamped with its arrival less the configured transport
time, and only frames that show the present scene (``StaleFrameFilter``). An absent, lost or dead camera
raises ``DeviceError``; ``runtime.sources.supervision`` opens it again.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from runtime.clock import Clock
from runtime.messages import Frame, Picture, once
from runtime.sources.config import CameraConfig
from runtime.sources.gstreamer import gstreamer_frames
from runtime.sources.network_camera import SILENT_S, NetworkCamera, NetworkFrame
from runtime.sources.rhythm import PAUSES, SLOWEST_S
from runtime.sources.supervision import DeviceError
from vaemotion.contract.image import rotate
from vaemotion.contract.media.picture import Shape, frame_bytes, to_picture

OLD_S = 0.5  # a frame that took this much longer than the fastest ones is stale
OLD_LIMIT_S = 2.0  # of stale frames only: then the stream, and with it the sender's queue, is opened anew
SAME_LIMIT_S = 30.0  # of equal frames only: then the driver may need a restart
MAX_DRIFT = 1e-3  # s per s by which a sender's clock may be off
STEPS = 9  # between time stamps, of which the median is the sender's interval

Plane = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _RawFrame:
    """A frame as its device gave it.

    ``picture``: converts it to RGB, once. ``plane``: (H, W) or (H, W, 3) uint8, by which frames are compared,
    None where they are not. ``sent_s``: the sender's time stamp, None where there is no reliable one.
    ``size_bytes``: of memory that it holds.
    """

    picture: Callable[[], Picture]
    plane: Plane | None = None
    sent_s: float | None = None
    size_bytes: int = 0


class Camera:
    """A camera whose ``stream`` runs in a thread of its own (``DeviceThread``), again after each loss."""

    def __init__(self, config: CameraConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        address = config.device.reveal()
        self._network = NetworkCamera(address, config.open_s) if "://" in address else None

    def stream(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the camera's fresh frames until ``stop`` is set. Raises DeviceError for a lost camera."""
        stale_filter = StaleFrameFilter(allow_equal=self._config.freeze_s == 0)
        with contextlib.closing(self._open(stop)) as raw_frames:
            for raw in raw_frames:
                if stop.is_set():
                    return
                arrival_s = self._clock.now_s()
                if stale_filter.is_fresh(raw.plane, raw.sent_s, arrival_s):
                    taken_s = arrival_s - self._config.offset_ms / 1000
                    yield Frame(taken_s, raw.picture, size_bytes=raw.size_bytes)

    def _open(self, stop: threading.Event) -> Generator[_RawFrame]:
        if self._config.through_gstreamer:
            return _from_gstreamer(self._config, stop)
        if self._network is not None:
            return _from_network(self._network, self._config.rotate_degrees)
        return _from_v4l2(self._config)


class StaleFrameFilter:
    """A test of whether a frame shows the present scene: no thread, no clock, no device.

    A frame that equals the frame before it is stale, because a driver that froze gives its last buffer again
    and again; so the first frame is stale, too. ``allow_equal``: equal frames are fresh, as from a captured
    slide or screen. A frame without a plane is not compared: encoders and denoising network cameras repeat a
    still scene bit for bit. Those are judged by the sender's time stamps: one that does not advance is stale,
    and so is the first one. A sender or a network that was frozen delivers old frames first: they took longer
    than the fastest ones (``_SenderClock``).
    """

    def __init__(self, *, allow_equal: bool = False) -> None:
        self._allow_equal = allow_equal
        self._before: Plane | None = None
        self._sender = _SenderClock()
        self._newest_s: float | None = None
        self._late_since_s: float | None = None

    def is_fresh(self, plane: Plane | None, sent_s: float | None, arrival_s: float) -> bool:
        """Return True for a fresh frame.

        Raises DeviceError when no frame was fresh for so long that the camera should be opened again.
        """
        equal = self._equals_last(plane)
        stands, late_s = (False, 0.0) if sent_s is None else self._sender.add(sent_s, arrival_s)
        late = late_s > self._sender.old_s and not stands
        fresh = not (equal or stands or late)
        if fresh or self._newest_s is None:
            self._newest_s = arrival_s
        if not late:
            self._late_since_s = None
        elif self._late_since_s is None:
            self._late_since_s = arrival_s
        elif arrival_s - self._late_since_s > OLD_LIMIT_S:
            raise DeviceError(f"its frames come {late_s:.1f} s late")
        if arrival_s - self._newest_s > SAME_LIMIT_S:
            raise DeviceError(f"the same {'time stamp' if stands else 'frame'} for {SAME_LIMIT_S:g} s")
        return fresh

    def _equals_last(self, plane: Plane | None) -> bool:
        if plane is None or self._allow_equal:
            return False
        before, self._before = self._before, plane
        return before is None or _equal(before, plane)


class _SenderClock:
    """A sender's time stamps beside the arrival of its frames.

    The shortest delay (arrival minus stamp) is the lower envelope. It may grow as the sender's clock drifts.
    A stamp before the last one is a clock that was set: the envelope begins anew.
    """

    def __init__(self) -> None:
        self._fastest: tuple[float, float] | None = None  # shortest delay, and the time it was updated
        self._sent_s: float | None = None
        self._steps_s: deque[float] = deque(maxlen=STEPS)

    @property
    def old_s(self) -> float:
        """The excess delay from which on a frame is old: no newer one can be under way in less."""
        return max(OLD_S, min(statistics.median(self._steps_s), SLOWEST_S) if self._steps_s else OLD_S)

    def add(self, sent_s: float, arrival_s: float) -> tuple[bool, float]:
        """Add a frame; return True for a stamp that stands still, and the excess over the shortest delay."""
        before_s, self._sent_s = self._sent_s, sent_s
        if before_s is not None and sent_s < before_s:
            self._fastest = None
        elif before_s is not None and sent_s > before_s:
            self._steps_s.append(sent_s - before_s)
        least_s = delay_s = arrival_s - sent_s
        if self._fastest is not None:
            fastest_s, then_s = self._fastest
            least_s = min(delay_s, fastest_s + MAX_DRIFT * (arrival_s - then_s))
        self._fastest = (least_s, arrival_s)
        return before_s in (None, sent_s), delay_s - least_s


def _equal(a: Plane, b: Plane) -> bool:
    return a.shape == b.shape and cv2.norm(a, b, cv2.NORM_INF) == 0


def _from_v4l2(config: CameraConfig) -> Generator[_RawFrame]:
    device = config.device.reveal()
    node = f"/dev/video{device}" if device.isdecimal() else device
    if not os.path.exists(node):
        raise DeviceError(f"there is no {node}")
    if not os.access(node, os.R_OK | os.W_OK):
        raise DeviceError(f"this user may not open {node}: add it to the group video")
    # OpenCV waits 10 s for a frame and reports each failure on stderr, once a second for weeks.
    silent_s = math.ceil(max(SILENT_S, PAUSES / config.frame_rate_hz))
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", f"{silent_s}")
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
            yield _RawFrame(once(partial(_from_bgr, bgr, config.rotate_degrees)), bgr, size_bytes=bgr.nbytes)
    finally:
        capture.release()


def _from_bgr(bgr: Plane, clockwise_degrees: int) -> Picture:
    return rotate(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), clockwise_degrees)


def _from_network(camera: NetworkCamera, clockwise_degrees: int) -> Generator[_RawFrame]:
    converter, lock = VideoReformatter(), threading.Lock()

    def convert(received: NetworkFrame) -> Picture:
        with lock:
            return rotate(to_picture(received.frame, converter, received.shape), clockwise_degrees)

    shape: Shape | None = None
    with contextlib.closing(camera.frames()) as frames:
        for received in frames:
            picture = once(partial(convert, received))
            if received.shape is not shape:
                picture()  # what cannot be converted is this thread's error, not the session's
                shape = received.shape
            yield _RawFrame(picture, sent_s=received.sent_s, size_bytes=frame_bytes(received.frame))


def _from_gstreamer(config: CameraConfig, stop: threading.Event) -> Generator[_RawFrame]:
    for rgb in gstreamer_frames(config, stop):
        yield _RawFrame(once(partial(rotate, rgb, config.rotate_degrees)), rgb, size_bytes=rgb.nbytes)
