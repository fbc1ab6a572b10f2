"""``--keep-media``: a recording of the camera's frames and the microphone's sound.

It shows faces and holds voices, so only an operator's option makes it. In: the input of each tick. Out:
``pictures.mkv`` (Motion JPEG) and ``sound.mkv`` (16 bits at 16 kHz), stamped with the run's clock; each
begins with its first evidence, and a kill leaves what was written until then. A thread of its own writes.
Input that it cannot keep up with is dropped and counted.
"""

from __future__ import annotations

import contextlib
import os
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from runtime.mailbox import BoundedQueue, ByteLimit, Closed
from runtime.messages import Frame, Sound
from runtime.sources.feed import Arrived, held_bytes
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.media.files import ffmpeg_name

QUEUED_EVENTS = 64  # frames and blocks of sound that wait to be written
QUEUED_BYTES = 64 << 20
_TIME_BASE_HZ = 1000  # Matroska counts milliseconds
_FLUSH = {"flush_packets": "1"}


class MediaKeeper:
    """A recorder of media. ``failure``: the reason for which it stopped, such as a full disk, else None."""

    def __init__(self, folder: Path) -> None:
        """Make the folder and start the writing thread.

        Raises UsageError when the folder is not empty, because media cannot be made again, and UserError when
        it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(folder.iterdir()):
                raise UsageError(f"--keep-media: {folder} is not empty; give a new folder")
        except OSError as error:
            raise UserError(f"--keep-media: cannot write to {folder}: {error.strerror}") from error
        self.failure: str | None = None
        self._reported = False
        self._folder = folder
        self._queue: BoundedQueue[Frame | Sound] = BoundedQueue(
            QUEUED_EVENTS, "drop-oldest", ByteLimit(QUEUED_BYTES, held_bytes)
        )
        self._files: dict[str, tuple[Any, Any]] = {}  # name → container, stream
        self._thread = threading.Thread(target=self._work, name="keep media", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of frames and blocks that were not written."""
        return self._queue.dropped

    def take(self, arrived: Arrived) -> list[str]:
        """Queue the input of a tick, without waiting. Returns the failure, once, when writing has failed."""
        if self.failure is not None:
            reported, self._reported = self._reported, True
            return [] if reported else [self.failure]
        with contextlib.suppress(Closed):  # it fails just now; ``failure`` will say why
            for event in (*((arrived.frame,) if arrived.frame else ()), *arrived.sound):
                self._queue.put(event)
        return []

    def close(self) -> None:
        """Write what is queued, and close the files."""
        self._queue.close()
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        try:
            while True:
                event = self._queue.take(timeout_s=0.5)
                if isinstance(event, Frame):
                    self._write_frame(event)
                elif event is not None:
                    self._write_sound(event)
        except Closed:
            pass
        except Exception as error:  # whatever it is, the run goes on without it
            self.failure = f"media are no longer kept: {getattr(error, 'strerror', None) or error}"
            self._queue.close()
        finally:
            for container, stream in self._files.values():
                with contextlib.suppress(OSError, FFmpegError):
                    container.mux(stream.encode(None))
                    container.close()

    def _write_frame(self, frame: Frame) -> None:
        rgb = np.ascontiguousarray(frame.picture())  # (H, W, 3) uint8
        video = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        if "pictures" not in self._files:
            container = self._open("pictures")
            stream = container.add_stream("mjpeg", rate=_TIME_BASE_HZ, options={"q:v": "3"})
            stream.height, stream.width = rgb.shape[:2]
            stream.pix_fmt = "yuvj420p"
            stream.codec_context.time_base = Fraction(1, _TIME_BASE_HZ)
            self._files["pictures"] = container, stream
        container, stream = self._files["pictures"]
        video.pts, video.time_base = round(frame.time_s * _TIME_BASE_HZ), Fraction(1, _TIME_BASE_HZ)
        container.mux(stream.encode(video.reformat(stream.width, stream.height, "yuvj420p")))

    def _write_sound(self, sound: Sound) -> None:
        if "sound" not in self._files:
            container = self._open("sound")
            stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ, layout="mono")
            self._files["sound"] = container, stream
        container, stream = self._files["sound"]
        integers = np.round(np.clip(sound.samples, -1, 1) * 32767).astype(np.int16)
        audio = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
        began_s = sound.time_s - len(integers) / SAMPLE_RATE_HZ
        audio.sample_rate, audio.time_base = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ)
        audio.pts = round(began_s * SAMPLE_RATE_HZ)
        container.mux(stream.encode(audio))

    def _open(self, name: str) -> Any:
        path = self._folder / f"{name}.mkv"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return av.open(ffmpeg_name(path), "w", format="matroska", options=_FLUSH)
