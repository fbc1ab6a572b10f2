"""A network camera (RTSP, MJPEG over HTTP) through PyAV, which says why a stream cannot be opened.

In: an address. Out: decoded frames, until a ``DeviceError``. The address stays out of every message, because
it may hold a password.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.stream import VideoStream

from runtime.sources.rhythm import Rhythm
from runtime.sources.supervision import DeviceError
from vaemotion.contract.media.picture import Shape, shape_of

# FFmpeg may analyze a stream for so long before its first frame.
ANALYZE_S = 0.5
# A camera without data for longer is opened again; for slow ones see ``Rhythm``.
SILENT_S = 2.0
# A stream of which nothing could be decoded for so long is opened again. Key frames are up to 10 s apart.
UNDECODED_S = 15.0
# The time to open a camera is doubled after each try that was too short, so many times.
LONGER_TRIES = 3

_OPTIONS = {
    "analyzeduration": f"{1e6 * ANALYZE_S:.0f}",
    "fpsprobesize": "0",  # do not wait for 20 frames to learn a rate that nobody asks for
}
_RTSP_OPTIONS = {
    # RTP over TCP; over UDP where the server refuses that (461 Unsupported Transport)
    "rtsp_transport": "tcp+udp",
    "rtsp_flags": "prefer_tcp",
    "allowed_media_types": "video",
}


@dataclass(frozen=True)
class NetworkFrame:
    """A decoded frame.

    ``sent_s``: the sender's time stamp, None where senders give none; ``shape``: another object after each
    change of size or pixel format.
    """

    frame: av.VideoFrame
    sent_s: float | None
    shape: Shape


class NetworkCamera:
    """A network camera that is opened again and again; it remembers what the tries before taught.

    ``open_s``: time that the camera has to answer and to begin, in the first try.
    """

    def __init__(self, address: str, open_s: float) -> None:
        self._address, self._first_open_s = address, open_s
        self._longer_tries = 0
        self._rhythm = Rhythm()

    @property
    def open_s(self) -> float:
        """Time for the next try, in seconds: 1, 2, 4 or 8 times the first."""
        return self._first_open_s * 2**self._longer_tries

    def frames(self) -> Generator[NetworkFrame]:
        """Open the camera and yield its frames.

        Raises DeviceError with the reason when the camera cannot be opened, or gives nothing more.
        """
        self._rhythm.interrupt()
        wait: Any = _Wait(self.open_s)
        options = _OPTIONS | (_RTSP_OPTIONS if self._stamped else {})
        timeout = (self.open_s, wait)
        try:
            with av.open(
                self._address, options=options, timeout=timeout, metadata_errors="replace"
            ) as container:
                yield from self._read(container, wait)
            reason = "the stream ended"
        except FFmpegError as error:
            reason = (error.strerror or type(error).__name__).lower()
        # FFmpeg reports a timeout as the end, as damage or as an exit, at random.
        if not wait.over():
            raise DeviceError(reason)
        if not wait.begun:
            self._lengthen()
        raise DeviceError(f"no data for {wait.limit_s:.2g} s")

    def _lengthen(self) -> None:
        """Give the camera more time in the next try."""
        self._longer_tries = min(self._longer_tries + 1, LONGER_TRIES)

    @property
    def _stamped(self) -> bool:
        """True for RTSP. MJPEG has no time stamps; FFmpeg invents them."""
        return self._address.startswith("rtsp")

    def _read(self, container: InputContainer, wait: _Wait) -> Generator[NetworkFrame]:
        video = container.streams.best("video")
        if not isinstance(video, VideoStream):
            raise DeviceError("the stream holds no video")
        wait.begin(self._rhythm.limit_s(SILENT_S))
        undecoded_s, decoded_s = max(UNDECODED_S, self.open_s), time.monotonic()
        kind: tuple[str, int, int] | None = None
        shape = Shape()
        # PyAV reads the time limit where a demuxer begins; the last packet is empty.
        while (packet := next(container.demux(), None)) is not None and packet.size:
            if packet.stream_index != video.index:
                if wait.over():
                    raise DeviceError(f"no video for {wait.limit_s:.2g} s")
                continue
            self._rhythm.add(time.monotonic())
            wait.begin(self._rhythm.limit_s(SILENT_S))
            for frame in _decoded(packet):
                decoded_s, self._longer_tries = time.monotonic(), 0
                if kind != (kind := (frame.format.name, frame.width, frame.height)):
                    shape = shape_of(video, frame)
                sent_s = frame.time if self._stamped else None
                if sent_s is not None or not self._stamped:
                    yield NetworkFrame(frame, sent_s, shape)
            if time.monotonic() - decoded_s > undecoded_s:
                self._lengthen()
                raise DeviceError(f"nothing that can be decoded for {undecoded_s:g} s")


class _Wait:
    """The time limit of what FFmpeg waits for, which PyAV reads as a number."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.begun = limit_s, False
        self._since_s = time.monotonic()

    def begin(self, limit_s: float) -> None:
        """Begin to wait for the next data of a stream."""
        self.limit_s, self.begun, self._since_s = limit_s, True, time.monotonic()

    def over(self) -> bool:
        return time.monotonic() - self._since_s > self.limit_s

    def __float__(self) -> float:
        return self.limit_s


def _decoded(packet: Any) -> list[av.VideoFrame]:
    """Return a packet's frames, none for a damaged one."""
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except InvalidDataError:
        return []
