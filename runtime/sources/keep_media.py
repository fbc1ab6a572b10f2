"""``--keep-media``: a recording of the camera's frames and the microphone's sound.

It shows faces and holds voices, so only an operator's option makes it. In: the input of each tick. Out:
``pictures.mkv`` (Motion JPEG) and ``sound.mkv`` (16 bits at 16 kHz), stamped with the run's clock; each
begins with its first evidence, and a kill leaves what was written until then. A file that is full is
followed by ``pictures.2.mkv``, and so is one that could not be written on; the oldest ones are removed. A
thread of its own writes. Input that it cannot keep up with is dropped and counted.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from runtime.losses import Losses
from runtime.mailbox import BoundedQueue, ByteLimit, Closed
from runtime.messages import Frame, Sound
from runtime.sources.feed import Arrived, held_bytes
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.media.files import ffmpeg_name

QUEUED_EVENTS = 64  # frames and blocks of sound that wait to be written
QUEUED_BYTES = 64 << 20
MAX_BYTES = 4_000_000_000
KEEP = 4
RETRY_S = 5.0  # between a failed write and the next file
_TIME_BASE_HZ = 1000  # Matroska counts milliseconds
_FLUSH = {"flush_packets": "1"}
_OURS = re.compile(r"(pictures|sound)(\.[0-9]+)?\.mkv")


class MediaKeeper:
    """A recorder of media. ``losses``: frames and blocks of sound that could not be written."""

    def __init__(
        self, folder: Path, max_bytes: int = MAX_BYTES, keep: int = KEEP, retry_s: float = RETRY_S
    ) -> None:
        """Make the folder and start the writing thread.

        ``max_bytes``: size from which on a file is followed by another; ``keep``: older files of pictures,
        and as many of sound, that stay; ``retry_s``: between a failed write and the next file. Raises
        UsageError when the folder holds anything but such files, and UserError when it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(not _OURS.fullmatch(name) for name in os.listdir(folder)):
                raise UsageError(f"--keep-media: {folder} holds other files; give a new folder")
        except OSError as error:
            raise UserError(f"--keep-media: cannot write to {folder}: {error.strerror}") from error
        self.losses = Losses("frames and blocks of sound for --keep-media")
        self._queue: BoundedQueue[Frame | Sound] = BoundedQueue(
            QUEUED_EVENTS, "drop-oldest", ByteLimit(QUEUED_BYTES, held_bytes)
        )
        self._pictures = _Track(folder, "pictures", max_bytes, keep)
        self._sound = _Track(folder, "sound", max_bytes, keep)
        self._retry_s, self._next_try_s, self._reason = retry_s, 0.0, ""
        self._thread = threading.Thread(target=self._work, name="keep media", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of frames and blocks that were not written."""
        return self._queue.dropped + self.losses.count

    def take(self, arrived: Arrived) -> list[str]:
        """Queue the input of a tick, without waiting. Returns what is due to be told of losses."""
        for event in (*((arrived.frame,) if arrived.frame else ()), *arrived.sound):
            self._queue.put(event)
        sentence = self.losses.sentence(time.monotonic())
        return [sentence] if sentence else []

    def close(self) -> None:
        """Write what is queued, and close the files."""
        self._queue.close()
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        with contextlib.suppress(Closed):
            while True:
                event = self._queue.take(timeout_s=0.5)
                if event is not None:
                    self._write(event)
        self._pictures.close()
        self._sound.close()

    def _write(self, event: Frame | Sound) -> None:
        """Write an event; after a failure, whatever it is, the run goes on and a new file is tried later."""
        if time.monotonic() < self._next_try_s:
            self.losses.add(self._reason)
            return
        try:
            if isinstance(event, Frame):
                self._write_frame(event)
            else:
                self._write_sound(event)
            self.losses.end()
        except Exception as error:
            self._reason = str(getattr(error, "strerror", None) or error)
            self._next_try_s = time.monotonic() + self._retry_s
            self.losses.add(self._reason)
            (self._pictures if isinstance(event, Frame) else self._sound).close()

    def _write_frame(self, frame: Frame) -> None:
        rgb = np.ascontiguousarray(frame.picture())  # (H, W, 3) uint8
        video = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        track = self._pictures
        if track.stream is None:
            stream = track.open().add_stream("mjpeg", rate=_TIME_BASE_HZ, options={"q:v": "3"})
            stream.height, stream.width = rgb.shape[:2]
            stream.pix_fmt = "yuvj420p"
            stream.codec_context.time_base = Fraction(1, _TIME_BASE_HZ)
            track.stream = stream
        video.pts, video.time_base = round(frame.time_s * _TIME_BASE_HZ), Fraction(1, _TIME_BASE_HZ)
        track.write(video.reformat(track.stream.width, track.stream.height, "yuvj420p"))

    def _write_sound(self, sound: Sound) -> None:
        track = self._sound
        if track.stream is None:
            track.stream = track.open().add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ, layout="mono")
        integers = np.round(np.clip(sound.samples, -1, 1) * 32767).astype(np.int16)
        audio = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
        began_s = sound.time_s - len(integers) / SAMPLE_RATE_HZ
        audio.sample_rate, audio.time_base = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ)
        audio.pts = round(began_s * SAMPLE_RATE_HZ)
        track.write(audio)


class _Track:
    """The files of pictures or of sound, one after the other. ``stream``: of the open one."""

    def __init__(self, folder: Path, name: str, max_bytes: int, keep: int) -> None:
        self._folder, self._name, self._max_bytes, self._keep = folder, name, max_bytes, keep
        self._container: Any = None
        self._path = folder
        self.stream: Any = None

    def open(self) -> Any:
        """Begin the next file, and remove the oldest of too many. Raises OSError or FFmpegError."""
        numbers = sorted(self._numbers())
        for number in numbers[: -self._keep]:
            self._file(number).unlink()
        self._path = self._file(numbers[-1] + 1 if numbers else 1)
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        self._container = av.open(ffmpeg_name(self._path), "w", format="matroska", options=_FLUSH)
        return self._container

    def write(self, frame: av.VideoFrame | av.AudioFrame) -> None:
        """Write a frame. Raises OSError or FFmpegError."""
        self._container.mux(self.stream.encode(frame))
        if self._path.stat().st_size >= self._max_bytes:
            self.close()

    def close(self) -> None:
        """Close the file. One in which nothing stands is removed."""
        with contextlib.suppress(OSError, FFmpegError):
            if self.stream is not None:
                self._container.mux(self.stream.encode(None))
        with contextlib.suppress(OSError, FFmpegError):
            if self._container is not None:
                self._container.close()
        with contextlib.suppress(OSError):
            if self._path != self._folder and not self._path.stat().st_size:
                self._path.unlink()
        self._container = self.stream = None

    def _numbers(self) -> list[int]:
        found = [_OURS.fullmatch(name) for name in os.listdir(self._folder)]
        return [int((match[2] or ".1")[1:]) for match in found if match and match[1] == self._name]

    def _file(self, number: int) -> Path:
        return self._folder / (f"{self._name}.mkv" if number == 1 else f"{self._name}.{number}.mkv")
