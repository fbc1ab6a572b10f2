"""A file as a stream of frames, sound and notices, in the order in which they would arrive.

In: a video with or without sound, a sound file, or an image. Out: ``Frame``, ``Sound`` and ``Notice``,
ascending in time (``FileSource``), and as a ``Feed`` at a clock's pace (``FileFeed``).
"""

from __future__ import annotations

import contextlib
import heapq
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError, InvalidDataError
from av.video.reformatter import VideoReformatter

from runtime.clock import Clock
from runtime.mailbox import BoundedQueue, Closed
from runtime.messages import Frame, Notice, Sound
from runtime.sources.feed import Arrived, Event
from runtime.stage_times import StageTimes
from vaemotion.contract.audio import SAMPLE_RATE_HZ, StreamingResampler, downmix
from vaemotion.contract.media import GAP_S, MediaError, read_image, refuse_unusable, upright
from vaemotion.contract.windows import EPSILON_S

SOUND_BLOCK_SAMPLES = 160  # 10 ms: every stride is a multiple, so that no tick lies within a block
IMAGE_S = 0.04  # an image is a video of one frame
MAX_JUMP_S = 60.0  # a timestamp that leaps further ahead than this is damage
MISSING_S = 0.5  # a file that ends this much before its header says is cut off
QUEUED_EVENTS = 64  # decoded ahead


class FileSource:
    """A file as a stream.

    ``frames_end_s`` and ``sound_end_s`` are known once that stream is exhausted.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for a look at its streams. Raises MediaError when nothing can be decoded."""
        refuse_unusable(path)
        self.path = path
        self.frames_end_s: float | None = None
        self.sound_end_s: float | None = None
        self._image: npt.NDArray[np.uint8] | None = None
        try:
            with av.open(str(path)) as container:
                self._declared_s = (container.duration or 0) / av.time_base
                is_image = bool(container.streams.video) and _is_image_format(container)
                self.has_frames, self.has_sound = bool(_videos(container)), bool(container.streams.audio)
        except FFmpegError as error:
            raise MediaError(
                f"{path} cannot be opened as video, sound or image: {error.strerror or error}"
            ) from error
        if is_image:
            self._image = read_image(path)  # (H, W, 3) uint8 RGB
            self.has_frames, self.has_sound = True, False
        if not self.has_frames and not self.has_sound:
            raise MediaError(f"{path} holds neither video nor sound")

    def events(self) -> Generator[Event]:
        """Yield the whole file once, ascending in time.

        Damage becomes a Notice, and the stream goes on behind it.
        """
        if self._image is not None:
            image = self._image
            yield Frame(0.0, lambda: image, IMAGE_S)
            self.frames_end_s = IMAGE_S
            return
        streams = [self._frames()] if self.has_frames else []
        streams += [self._sound()] if self.has_sound else []
        yield from heapq.merge(*streams, key=lambda event: event.time_s)
        end_s = max(self.frames_end_s or 0.0, self.sound_end_s or 0.0)
        if end_s < self._declared_s - MISSING_S:
            yield Notice(
                end_s, f"the file ends at {end_s:.1f} s of {self._declared_s:.1f}: it is cut off or damaged"
            )

    def _frames(self) -> Iterator[Event]:
        newest_s, end_s, converter = -1.0, 0.0, VideoReformatter()
        with av.open(str(self.path)) as container:
            stream = _videos(container)[0]
            stream.thread_type = "AUTO"
            for frame in _decoded(container, stream):
                if isinstance(frame, str):
                    yield Notice(max(0.0, newest_s), frame)
                    continue
                time_s = _time_s(frame, container)
                rate = float(stream.average_rate or 25)
                if time_s is None:
                    time_s = newest_s + 1 / rate if newest_s >= 0 else 0.0
                if not newest_s < time_s <= max(newest_s, 0.0) + MAX_JUMP_S:
                    yield Notice(max(newest_s, 0.0), f"frame stamped {time_s:.2f} s left out: out of order")
                    continue
                newest_s = time_s
                duration_s = (frame.duration or 0) * float(frame.time_base or 0) or 1 / rate
                end_s = time_s + duration_s
                yield Frame(time_s, lambda frame=frame: upright(frame, converter), end_s)
        self.frames_end_s = end_s

    def _sound(self) -> Iterator[Event]:
        given, pending = 0, np.zeros(0, np.float32)  # given: samples so far
        with av.open(str(self.path)) as container:
            for block in _at_16_khz(container):
                if isinstance(block, str):
                    yield Notice(given / SAMPLE_RATE_HZ, block)
                    continue
                pending = np.concatenate([pending, block])
                whole = len(pending) // SOUND_BLOCK_SAMPLES * SOUND_BLOCK_SAMPLES
                for cut in np.split(pending[:whole], whole // SOUND_BLOCK_SAMPLES) if whole else []:
                    given += len(cut)
                    yield Sound(given / SAMPLE_RATE_HZ, cut)
                pending = pending[whole:]
        if len(pending):
            given += len(pending)
            yield Sound(given / SAMPLE_RATE_HZ, pending)
        self.sound_end_s = given / SAMPLE_RATE_HZ


def _videos(container: Any) -> list[Any]:
    """Return the video streams, without a sound file's cover image."""
    return [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]


def _is_image_format(container: Any) -> bool:
    """Return True for FFmpeg's image readers: image2, png_pipe, jpeg_pipe, webp_pipe and their kin."""
    return any(part == "image2" or part.endswith("_pipe") for part in container.format.name.split(","))


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Yield decoded frames, and a sentence for each damaged packet or damaged end of the file."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            yield from packet.decode()
        except StopIteration:
            return
        except FFmpegError as error:
            reason = error.strerror or type(error).__name__
            yield f"damaged {stream.type} packet left out: {reason}"
            if not isinstance(error, InvalidDataError):
                return  # the file itself cannot be read on


def _time_s(frame: Any, container: Any) -> float | None:
    """Return a frame's time from the start of the file, None without a timestamp."""
    return None if frame.time is None else frame.time - (container.start_time or 0) / av.time_base


def _at_16_khz(container: Any) -> Iterator[npt.NDArray[np.float32] | str]:
    """Yield sound from the file's start, without gaps, and sentences about damage.

    Sound comes in blocks (n,) float32 of one channel at 16 kHz.
    """
    to_float = av.AudioResampler(format="fltp")  # converts the sample format only; soxr the rate
    resampler: StreamingResampler | None = None
    rate_hz, position = 0, 0  # position: samples at rate_hz so far
    for frame in _decoded(container, container.streams.audio[0]):
        if isinstance(frame, str):
            yield frame
            continue
        for block in to_float.resample(frame):
            if resampler is None:
                rate_hz = block.sample_rate
                resampler = StreamingResampler(rate_hz)
            time_s = _time_s(frame, container)
            gap = 0 if time_s is None else round(time_s * rate_hz) - position
            if GAP_S * rate_hz < gap <= MAX_JUMP_S * rate_hz:
                position += gap
                yield resampler.push(np.zeros(gap, np.float32))
            samples = downmix(np.asarray(block.to_ndarray(), np.float32).T)  # (channels, n) → (n,)
            position += len(samples)
            yield resampler.push(np.nan_to_num(samples, posinf=0.0, neginf=0.0))
    if resampler is not None:
        yield resampler.finish()


def timed(events: Generator[Event], times: StageTimes) -> Generator[Event]:
    """Yield the same events, and measure the making of each as "decode"."""
    with contextlib.closing(events):
        while True:
            with times.measure("decode"):
                event = next(events, None)
            if event is None:
                return
            yield event


class FileFeed:
    """A file as a ``Feed`` at the clock's pace.

    A thread decodes ahead, and each event is delivered when its time has come; on a simulated clock that
    is as fast as the session asks. Nothing is lost.
    """

    def __init__(self, source: FileSource, clock: Clock) -> None:
        """Start the decoding thread."""
        self.dropped: dict[str, int] = {}
        self.times = StageTimes()
        self.source, self._clock = source, clock
        self._queue: BoundedQueue[Event] = BoundedQueue(QUEUED_EVENTS, "wait")
        self._next: Event | None = None
        self._over = False
        self._thread = threading.Thread(target=self._decode, name="source", daemon=True)
        self._thread.start()

    def _decode(self) -> None:
        try:
            for event in timed(self.source.events(), self.times):
                while not self._queue.put(event, timeout_s=0.5):
                    pass
            self._queue.close()
        except Closed:
            return
        except BaseException as error:
            self._queue.fail(error)

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        """Wait until ``time_s``, or until ``stop`` is set, and return what arrived since the last call."""
        self._clock.sleep_until(time_s, stop)
        arrived = Arrived()
        while not stop.is_set() and not self._over:
            try:
                self._next = self._next or self._queue.take(timeout_s=0.2)
            except Closed:
                self._over = True
                break
            if self._next is None:
                continue  # decoding is behind: wait, because a file loses nothing
            if self._next.time_s > time_s + EPSILON_S:
                break
            arrived.add(self._next)
            self._next = None
        arrived.over = self._over
        arrived.frames_end_s, arrived.sound_end_s = self.source.frames_end_s, self.source.sound_end_s
        return arrived

    def close(self) -> None:
        """End the decoding thread."""
        self._queue.close()
        self._thread.join(timeout=1.0)
