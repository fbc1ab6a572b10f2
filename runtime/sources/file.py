"""A file as a stream of frames, sound and notices, in the order in which they would arrive.

In: a video with or without sound, a sound file, or an image. Out: ``Frame``, ``Sound`` and ``Notice``,
ascending in time (``FileSource``), and as a ``Feed`` at a clock's pace (``FileFeed``).
"""

from __future__ import annotations

import contextlib
import heapq
import math
import threading
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from runtime.clock import Clock
from runtime.mailbox import BoundedQueue, ByteLimit, Closed
from runtime.messages import Frame, Notice, Sound
from runtime.sources.feed import Arrived, Event, held_bytes
from runtime.stage_times import StageTimes
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.media.medium import Medium, Shown
from vaemotion.contract.media.remarks import Remark
from vaemotion.contract.windows import EPSILON_S

SOUND_BLOCK_SAMPLES = 160  # 10 ms: every stride is a multiple, so that no tick lies within a block
QUEUED_EVENTS = 64  # decoded ahead
QUEUED_BYTES = 16 << 20
# A decoded frame that holds more is converted at once: as RGB of bounded size it holds less.
LARGE_BYTES = 8 << 20


class FileSource:
    """A file as a stream.

    ``frames_end_s`` and ``sound_end_s`` are known once that stream is exhausted.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for a look at its streams. Raises MediaError when nothing can be decoded."""
        self.path = path
        self._medium = Medium(path)
        self.frames_end_s: float | None = None
        self.sound_end_s: float | None = None
        self.has_frames, self.has_sound = self._medium.has_pictures, self._medium.has_sound

    def events(self, frame_grid_s: float | None = None) -> Generator[Event]:
        """Yield the whole file once, ascending in time.

        ``frame_grid_s``: time between two grid points, at each of which the newest frame is wanted; frames
        between them are left out. None: every frame. Damage becomes a Notice, and the stream goes on behind
        it.
        """
        for note in self._medium.notes:
            yield Notice(0.0, note)
        streams = [self._frames(frame_grid_s)] if self.has_frames else []
        streams += [self._sound()] if self.has_sound else []
        yield from heapq.merge(*streams, key=lambda event: event.time_s)
        cut_off = self._medium.cut_off(self.frames_end_s, self.sound_end_s)
        if cut_off is not None:
            yield Notice(max(self.frames_end_s or 0.0, self.sound_end_s or 0.0), cut_off.text)

    def _frames(self, grid_s: float | None) -> Iterator[Event]:
        newest_s, end_s, converter = 0.0, 0.0, VideoReformatter()
        waiting: Shown | None = None  # it may be the newest one at the next grid point
        for shown in self._medium.pictures():
            if isinstance(shown, Remark):
                yield Notice(newest_s, shown.text)
                continue
            if waiting is not None and _is_shown(waiting.time_s, shown.time_s, grid_s):
                yield _frame(waiting, converter)
            waiting = shown
            newest_s, end_s = waiting.time_s, shown.end_s
        if waiting is not None:
            yield _frame(waiting, converter)
        self.frames_end_s = end_s

    def _sound(self) -> Iterator[Event]:
        given, pending = 0, np.zeros(0, np.float32)  # given: samples so far
        for block in self._medium.sound():
            if isinstance(block, Remark):
                yield Notice(given / SAMPLE_RATE_HZ, block.text)
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


def _frame(shown: Shown, converter: VideoReformatter) -> Frame:
    if shown.size_bytes <= LARGE_BYTES:
        return Frame(shown.time_s, partial(shown.picture, converter), shown.end_s, shown.size_bytes)
    picture = shown.picture(converter)  # (H, W, 3) uint8 RGB
    return Frame(shown.time_s, lambda: picture, shown.end_s, picture.nbytes)


def _is_shown(from_s: float, until_s: float, grid_s: float | None) -> bool:
    """Return True when a grid point lies between two frames, which shows the first one."""
    if grid_s is None:
        return True
    return math.ceil((from_s - EPSILON_S) / grid_s) * grid_s + EPSILON_S < until_s


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

    def __init__(self, source: FileSource, clock: Clock, frame_grid_s: float | None = None) -> None:
        """Start the decoding thread. ``frame_grid_s``: as of ``FileSource.events``."""
        self.dropped: dict[str, int] = {}
        self.times = StageTimes()
        self.source, self._clock = source, clock
        self._grid_s = frame_grid_s
        self._queue: BoundedQueue[Event] = BoundedQueue(
            QUEUED_EVENTS, "wait", ByteLimit(QUEUED_BYTES, held_bytes)
        )
        self._next: Event | None = None
        self._over = False
        self._thread = threading.Thread(target=self._decode, name="source", daemon=True)
        self._thread.start()

    def _decode(self) -> None:
        try:
            for event in timed(self.source.events(self._grid_s), self.times):
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
