"""Sources: a file as a stream of messages in the order in which they would arrive, and how they reach the perception loop.

In: a video with or without sound, a sound file, or a picture. Out: ``Frame``, ``Sound`` and ``Notice``, ascending in time.
A feed hands a perception loop what arrived until a moment: ``FileFeed`` a file, ``runtime.live.LiveFeed`` devices.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError, InvalidDataError
from av.video.reformatter import VideoReformatter

from runtime.clock import Clock
from runtime.mailbox import Closed, Ring
from runtime.messages import Frame, Notice, Sound
from runtime.stage_times import StageTimes
from vaemotion.contract.audio import SAMPLE_RATE_HZ, StreamingResampler, downmix
from vaemotion.contract.media import GAP_S, MediaError, read_picture, refuse_unusable, upright

Event = Frame | Sound | Notice

SOUND_BLOCK_SAMPLES = (
    160  # 10 ms: every stride is a multiple of it, so that a moment never lies within a block
)
STILL_S = 0.04  # a lone picture is a film of one frame
MAX_JUMP_S = 60.0  # a timestamp that leaps further ahead than this is damage
MISSING_S = 0.5  # a file that ends this much before its own header says is cut off
_EPSILON_S = 1e-6


class FileSource:
    """A file as a stream. ``frames_end_s`` and ``sound_end_s`` are known once that stream is exhausted."""

    def __init__(self, path: Path) -> None:
        """Raises MediaError when nothing in the file can be seen or heard."""
        refuse_unusable(path)
        self.path = path
        self.frames_end_s: float | None = None
        self.sound_end_s: float | None = None
        self._lone_picture: npt.NDArray[np.uint8] | None = None
        try:
            with av.open(str(path)) as container:
                self._promised_s = (container.duration or 0) / av.time_base
                self.is_picture = bool(container.streams.video) and _is_still(container)
                self.has_frames, self.has_sound = bool(_film(container)), bool(container.streams.audio)
        except FFmpegError as error:
            raise MediaError(
                f"{path} cannot be opened as video, sound or picture: {error.strerror or error}"
            ) from error
        if self.is_picture:
            self._lone_picture = read_picture(path)
            self.has_frames, self.has_sound = True, False
        if not self.has_frames and not self.has_sound:
            raise MediaError(f"{path} holds neither pictures nor sound")

    def events(self) -> Generator[Event]:
        """All of it once, ascending in time. Damage is a Notice, and the stream goes on behind it."""
        if self._lone_picture is not None:
            picture = self._lone_picture
            yield Frame(0.0, lambda: picture, STILL_S)
            self.frames_end_s = STILL_S
            return
        streams = [self._frames()] if self.has_frames else []
        streams += [self._sound()] if self.has_sound else []
        yield from heapq.merge(*streams, key=lambda event: event.time_s)
        end_s = max(self.frames_end_s or 0.0, self.sound_end_s or 0.0)
        if end_s < self._promised_s - MISSING_S:
            yield Notice(
                end_s, f"the file ends at {end_s:.1f} s of {self._promised_s:.1f}: it is cut off or damaged"
            )

    def _frames(self) -> Iterator[Event]:
        newest_s, end_s, converter = -1.0, 0.0, VideoReformatter()
        with av.open(str(self.path)) as container:
            stream = _film(container)[0]
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
                    yield Notice(
                        max(newest_s, 0.0), f"a picture stamped {time_s:.2f} s is out of order, left out"
                    )
                    continue
                newest_s = time_s
                duration_s = (frame.duration or 0) * float(frame.time_base or 0) or 1 / rate
                end_s = time_s + duration_s
                yield Frame(time_s, lambda frame=frame: upright(frame, converter), end_s)
        self.frames_end_s = end_s

    def _sound(self) -> Iterator[Event]:
        given, pending = 0, np.zeros(0, np.float32)
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


def _film(container: Any) -> list[Any]:
    """Streams of moving pictures: a sound file's cover picture is none."""
    return [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]


def _is_still(container: Any) -> bool:
    """FFmpeg's picture readers: image2, png_pipe, jpeg_pipe, webp_pipe and their kin."""
    return any(part == "image2" or part.endswith("_pipe") for part in container.format.name.split(","))


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; for a packet that cannot be decoded a sentence, and likewise for a file that ends in damage."""
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
    """A frame's time from the start of the file, None without a timestamp."""
    return None if frame.time is None else frame.time - (container.start_time or 0) / av.time_base


def _at_16_khz(container: Any) -> Iterator[npt.NDArray[np.float32] | str]:
    """Blocks (n,) float32 of one channel at 16 kHz from the file's start, without holes, and sentences about damage."""
    to_float = av.AudioResampler(format="fltp")  # sample format only; the rate is soxr's affair
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
            hole = 0 if time_s is None else round(time_s * rate_hz) - position
            if GAP_S * rate_hz < hole <= MAX_JUMP_S * rate_hz:
                position += hole
                yield resampler.push(np.zeros(hole, np.float32))
            samples = downmix(np.asarray(block.to_ndarray(), np.float32).T)  # (channels, n) → (n,)
            position += len(samples)
            yield resampler.push(np.nan_to_num(samples, posinf=0.0, neginf=0.0))
    if resampler is not None:
        yield resampler.finish()


@dataclass
class Arrived:
    """What came until a moment: the newest picture, all of the sound, and which streams are over."""

    frame: Frame | None = None
    sound: list[Sound] = field(default_factory=list[Sound])
    notices: list[Notice] = field(default_factory=list[Notice])
    frames_end_s: float | None = None
    sound_end_s: float | None = None
    over: bool = False
    lost: set[str] = field(
        default_factory=set[str]
    )  # live devices whose evidence from before no longer counts

    def now_s(self, moment_s: float) -> float:
        """``moment_s``, or the medium's end where that lies before it."""
        ends_s = [end for end in (self.frames_end_s, self.sound_end_s) if end is not None]
        return min(moment_s, max(ends_s)) if self.over and ends_s else moment_s

    def heard(self) -> Sound | None:
        """All of the sound as one block: what follows computes in batches."""
        if not self.sound:
            return None
        return Sound(self.sound[-1].time_s, np.concatenate([sound.samples for sound in self.sound]))

    def add(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Frame):
            self.frame = event
        elif isinstance(event, Sound):
            self.sound.append(event)
        else:
            self.notices.append(event)


class Feed(Protocol):
    """What a perception loop is fed by. ``dropped`` counts what never reached it, ``times`` tells what decoding took."""

    times: StageTimes

    @property
    def dropped(self) -> dict[str, int]: ...
    def until(self, time_s: float, stop: threading.Event) -> Arrived: ...
    def close(self) -> None: ...


def timed(events: Generator[Event], times: StageTimes) -> Generator[Event]:
    """The same events; what each took to be made is measured as "decode"."""
    with contextlib.closing(events):
        while True:
            with times.measure("decode"):
                event = next(events, None)
            if event is None:
                return
            yield event


class FileFeed:
    """A file at the clock's pace: a thread decodes ahead, and each event is delivered when its time has come. On a simulated clock that is as fast as
    the loop asks; nothing is ever lost."""

    def __init__(self, source: FileSource, clock: Clock) -> None:
        self.dropped: dict[str, int] = {}
        self.times = StageTimes()
        self._source, self._clock = source, clock
        self._ring: Ring[Event] = Ring(64, "wait")
        self._next: Event | None = None
        self._over = False
        self._thread = threading.Thread(target=self._decode, name="source", daemon=True)
        self._thread.start()

    def _decode(self) -> None:
        try:
            for event in timed(self._source.events(), self.times):
                while not self._ring.put(event, timeout_s=0.5):
                    pass
            self._ring.close()
        except Closed:
            return
        except BaseException as error:
            self._ring.fail(error)

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        self._clock.sleep_until(time_s, stop)
        arrived = Arrived()
        while not stop.is_set() and not self._over:
            try:
                self._next = self._next or self._ring.take(timeout_s=0.2)
            except Closed:
                self._over = True
                break
            if self._next is None:
                continue  # decoding is behind: wait for it, files lose nothing
            if self._next.time_s > time_s + _EPSILON_S:
                break
            arrived.add(self._next)
            self._next = None
        arrived.over = self._over
        arrived.frames_end_s, arrived.sound_end_s = self._source.frames_end_s, self._source.sound_end_s
        return arrived

    def close(self) -> None:
        self._ring.close()
        self._thread.join(timeout=1.0)
