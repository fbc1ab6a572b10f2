"""A medium: a film, a sound file or an image, as pictures and sound on one timeline.

In: a path, or a part of a file. Out: ``Shown`` pictures and blocks of sound, each ascending in time, with
``Remark`` between them. The rules are FFmpeg's: of several tracks the default one; decoded order is display
order; a cover is no film; a raw stream runs at its codec's own rate; a break between joined recordings is
closed. A gap in a container that keeps time is a picture that stands still, or silence.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.image import Picture
from vaemotion.contract.media.decoder import BestStamp, Decoding, channels_of
from vaemotion.contract.media.files import (
    MediaError,
    MediaFile,
    WavHeader,
    ffmpeg_name,
    is_heif,
    refuse_unusable,
    wav_header,
)
from vaemotion.contract.media.picture import SQUARE, Shape, frame_bytes, shape_of, to_picture
from vaemotion.contract.media.remarks import Remark, Remarks
from vaemotion.contract.media.sound import Converter
from vaemotion.contract.media.timeline import JUMP, FrameTimes, PacketTimes

IMAGE_S = 0.04  # an image is a film of one picture
MISSING_S = 0.5  # a stream that ends this much before its declared end is cut off
RATE_HZ = 25.0  # of pictures without any rate
# Read before the part that is asked for: the first output of a decoder in mid-stream may be wrong.
PREROLL_S = 2
# Containers that keep an exact time for each frame and an exact duration; others are read from their start.
_EXACT = ("matroska", "mov", "wav", "flac")
_IMAGES = ("gif", "apng", "ico")
_NOT_SHOWN = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
_GONE = "damaged: a track was found, and is not found again"
_DURATION_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shown:
    """A picture of a medium. ``frame``: decoded, in the codec's own colors, or RGB already."""

    time_s: float
    end_s: float
    frame: av.VideoFrame | Picture
    shape: Shape = SQUARE

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that the decoded frame holds."""
        if isinstance(self.frame, np.ndarray):
            return self.frame.nbytes
        return frame_bytes(self.frame)

    def picture(self, converter: VideoReformatter) -> Picture:
        """Convert to (H, W, 3) uint8 RGB; see ``to_picture``."""
        if isinstance(self.frame, np.ndarray):
            return self.frame
        return to_picture(self.frame, converter, self.shape)


class Medium:
    """A file that holds pictures, sound, or both. ``notes``: what a technician should know of it."""

    def __init__(self, path: MediaFile) -> None:
        """Look at the file's streams. Raises MediaError when nothing can be decoded."""
        refuse_unusable(path)
        self.path = path
        self.notes: list[str] = []
        # What was decoded last, for its counts of damage.
        self.video: Decoding | None = None
        self.audio: Decoding | None = None
        self.wav: WavHeader | None = wav_header(path)
        self._video = self._audio = -1  # index of the stream, -1: none
        self._exact = self._breaks = False
        self._stamped = True
        self._counted = self._by_packets = False
        self._origin_s = 0.0
        self._declared_s: dict[int, float] = {}
        self._end_s: float | None = None
        self._still = is_heif(path) or not self._look()
        if self._still:
            with contextlib.closing(_read_pictures(path)) as pictures:
                next(pictures)
        if not self.has_pictures and not self.has_sound:
            raise MediaError(f"{path} holds neither video nor sound")

    @property
    def has_pictures(self) -> bool:
        """True for a film or an image."""
        return self._still or self._video >= 0

    @property
    def has_sound(self) -> bool:
        """True where there is a sound track."""
        return self._audio >= 0

    @property
    def declared_end_s(self) -> float | None:
        """The end of the file in seconds from its start, by its header; None for an image and raw streams."""
        return self._end_s

    @property
    def streams(self) -> tuple[int, ...]:
        """Indexes of the streams that are read, pictures before sound; none of an image."""
        return tuple(index for index in (self._video, self._audio) if index >= 0)

    @property
    def origin_s(self) -> float:
        """The stamp at which the file starts; all times count from there."""
        return self._origin_s

    def pictures(self, from_s: float = 0.0) -> Iterator[Shown | Remark]:
        """Yield the pictures from shortly before ``from_s`` on, ascending in time. Damage is a remark.

        The first one is shown at ``from_s`` or earlier, where there is one.
        """
        yield from self._animation() if self._still else self._film(from_s)

    def sound(self, from_s: float = 0.0) -> Iterator[Float32 | Remark]:
        """Yield the sound from ``from_s`` on as blocks (n,) float32 of one channel at 16 kHz, without gaps.

        Sound that begins later is preceded by silence.
        """
        start_s = max(0, math.floor(from_s) - PREROLL_S) if self._seeks else 0
        skip = round((from_s - start_s) * SAMPLE_RATE_HZ)
        for block in self._heard(start_s):
            if isinstance(block, Remark):
                yield block
            elif skip < len(block):
                yield block[skip:]
                skip = 0
            else:
                skip -= len(block)

    def cut_off(self, pictures_end_s: float | None, sound_end_s: float | None) -> Remark | None:
        """Return a remark where the streams' ends lie before their declared ones. None: not read."""
        if self._still or self.wav is not None:
            return None
        short: Remark | None = None
        for index, end_s in ((self._video, pictures_end_s), (self._audio, sound_end_s)):
            declared_s = None if index < 0 else self._declared_s.get(index)
            if end_s is None or declared_s is None:
                continue
            if end_s >= declared_s - MISSING_S:
                return None  # a file that is cut off ends all of its streams
            text = f"the file ends at {end_s:.1f} s of {declared_s:.1f}: it is cut off or damaged"
            short = Remark(end_s, text)
        return short

    def _look(self) -> bool:
        """Choose the streams; return False for an image."""
        try:
            with self._open() as container:
                kind = container.format.name
                if kind in _IMAGES or "image2" in kind or "_pipe" in kind:
                    return False
                self._exact = any(name in kind for name in _EXACT)
                self._breaks = bool(container.format.flags & Flags.ts_discont.value)
                self._stamped = not container.format.flags & Flags.no_timestamps.value
                self._by_packets = kind == "avi"  # it numbers packets, one for each frame
                # Streams without a container: stamps are FFmpeg's own count, which a change of rate breaks.
                raw = bool(container.format.flags & Flags.generic_index.value)
                self._counted = raw and not self._exact and not self._breaks
                self._origin_s = (container.start_time or 0) / av.time_base
                self._choose(container)
                self._declared_s = self._declared(container)
                self._end_s = None if container.duration is None else container.duration / av.time_base
        except FFmpegError as error:
            if _is_image(self.path):
                return False
            reason = error.strerror or error
            raise MediaError(f"{self.path} cannot be opened as video, sound or image: {reason}") from error
        if self.wav is not None and self.wav.remark is not None:
            self.notes.append(self.wav.remark)
        return True

    @property
    def _seeks(self) -> bool:
        return self._exact and not self._breaks and self._stamped

    def _open(self, *, for_sound: bool = False) -> Any:
        """Open the container. Metadata in any encoding is accepted, because nothing reads it."""
        options = {"ignore_length": "1"} if self.wav is not None and self.wav.stale else {}
        if for_sound and not self._breaks:
            options["skip_frame"] = "all"  # no picture is decoded for a look at the streams
        return av.open(ffmpeg_name(self.path), metadata_errors="replace", options=options)

    def _choose(self, container: Any) -> None:
        """Choose the default track of each kind, else the largest, and note the others."""
        shown = [s for s in container.streams.video if not s.disposition & _NOT_SHOWN]
        heard = list(container.streams.audio)
        for kind, streams, weight in (("picture", shown, _pixels), ("sound", heard, channels_of)):
            decoded = [stream for stream in streams if stream.codec_context is not None]
            if len(decoded) < len(streams):
                self.notes.append(f"a {kind} track is left out: FFmpeg has no decoder for it")
            if not decoded:
                continue
            best = max(decoded, key=lambda s, w=weight: (bool(s.disposition & Disposition.default), w(s)))
            if kind == "picture":
                self._video = best.index
            else:
                self._audio = best.index
            if len(streams) > 1:
                name = f" ({best.language})" if best.language else ""
                number = streams.index(best) + 1
                self.notes.append(f"of {len(streams)} {kind} tracks number {number}{name} is taken")
        if self._video >= 0 and not self._stamped:
            stream = container.streams[self._video]
            if not _codec_rate(stream):
                self.notes.append(
                    f"the stream names no frame rate: {_rate_hz(stream):g} a second are assumed"
                )

    def _declared(self, container: Any) -> dict[int, float]:
        """Return the declared end by stream, in seconds from the file's start, where it is exact."""
        declared: dict[int, float] = {}
        for stream in container.streams if self._exact else ():
            tag = _DURATION_TAG.match(stream.metadata.get("DURATION", ""))
            if stream.duration is not None and stream.time_base is not None:
                start = stream.start_time or 0
                end_s = float((start + stream.duration) * stream.time_base) - self._origin_s
            elif tag is not None:
                hours, minutes, seconds = tag.groups()
                end_s = 3600 * int(hours) + 60 * int(minutes) + float(seconds) - self._origin_s
            elif container.duration is not None and len(container.streams) == 1:
                end_s = container.duration / av.time_base
            else:
                continue
            declared[stream.index] = end_s
        return declared

    def _animation(self) -> Iterator[Shown | Remark]:
        end_s = 0.0
        try:
            for time_s, end_s, picture in _read_pictures(self.path):
                yield Shown(time_s, end_s or IMAGE_S, picture)
        except MediaError as error:
            yield Remark(end_s, str(error))

    def _film(self, from_s: float) -> Iterator[Shown | Remark]:
        with self._open() as container:
            if self._video >= len(container.streams):
                yield Remark(0.0, _GONE)
                return
            stream = container.streams[self._video]
            duration_s, shape, turned = 1 / _rate_hz(stream), SQUARE, None
            remarks, times, best = Remarks(), self._times(self._video), BestStamp()
            self._seek(container, stream, from_s - PREROLL_S)
            self.video = self._decoding(container, self._video)
            for frame in self.video.frames():
                if isinstance(frame, Remark):
                    yield frame
                    continue
                if frame.rotation != turned:
                    shape, turned = shape_of(stream, frame), frame.rotation
                self.video.damaged += frame.is_corrupt
                base_s = float(frame.time_base or 0)
                shown_s = ((frame.duration or 0) * base_s if self._stamped else 0.0) or duration_s
                stamp = best.of(frame.pts, frame.dts) if self._stamped else None
                if self._by_packets and self.video.stamps:
                    stamp = self.video.stamps.popleft()
                stamped_s = None if stamp is None else stamp * base_s - self._origin_s
                time_s, oddity = times.place(stamped_s, shown_s)
                if oddity is not None:
                    yield from remarks.add(time_s, f"pictures: {oddity.kind}", oddity.details)
                end_s = time_s + shown_s
                if end_s > 0:
                    yield Shown(max(0.0, time_s), end_s, frame, shape)
            yield from remarks.rest()

    def _heard(self, start_s: int) -> Iterator[Float32 | Remark]:
        converter, remarks, times = Converter(start_s), Remarks(), self._times(self._audio)
        with self._open(for_sound=True) as container:
            if self._audio >= len(container.streams):
                yield Remark(0.0, _GONE)
                return
            self._seek(container, container.streams[self._audio], start_s)
            self.audio = self._decoding(container, self._audio)
            for frame in self.audio.frames():
                if isinstance(frame, Remark):
                    yield frame
                    continue
                if not frame.sample_rate or not frame.samples:
                    continue
                stamped_s = None
                if frame.pts is not None and not self._counted:
                    stamped_s = float(frame.pts * frame.time_base) - self._origin_s
                time_s, oddity = times.place(stamped_s, frame.samples / frame.sample_rate)
                if oddity is not None and oddity.kind == JUMP:
                    yield from remarks.add(time_s, f"sound: {oddity.kind}", oddity.details)
                broken_blocks = converter.broken_blocks
                yield from converter.push(frame, time_s)
                if converter.broken_blocks > broken_blocks:
                    self.audio.damaged += 1
                    yield from remarks.add(time_s, "sound: samples that are not finite become silence")
        yield from converter.finish()
        yield from remarks.rest()

    def _decoding(self, container: Any, index: int) -> Decoding:
        breaks = PacketTimes() if self._breaks else None
        others = [stream for stream in container.streams if stream.index in (self._video, self._audio)]
        others = [stream for stream in others if stream.index != index]
        return Decoding(container, container.streams[index], self._origin_s, breaks, others)

    def _seek(self, container: Any, stream: Any, target_s: float) -> None:
        if self._seeks and target_s > 0:
            with contextlib.suppress(FFmpegError):
                container.seek(int((self._origin_s + target_s) / stream.time_base), stream=stream)

    def _times(self, index: int) -> FrameTimes:
        return FrameTimes(self._declared_s.get(index))


def _read_pictures(path: MediaFile) -> Generator[tuple[float, float, Picture]]:
    # Imported here: image readers take 0.2 s and 20 MB, which a film and a device do not need.
    from vaemotion.contract.media.still import read_pictures

    return read_pictures(path)


def _is_image(path: MediaFile) -> bool:
    """Return True for a file that FFmpeg does not know and an image reader does."""
    try:
        with contextlib.closing(_read_pictures(path)) as pictures:
            next(pictures)
    except MediaError:
        return False
    return True


def _pixels(stream: Any) -> int:
    return (stream.codec_context.width or 0) * (stream.codec_context.height or 0)


def _codec_rate(stream: Any) -> float:
    """Return the frame rate that the codec itself names, in Hz, else 0."""
    rate = stream.codec_context.framerate
    return float(rate) if rate and rate.denominator else 0.0


def _rate_hz(stream: Any) -> float:
    """Return the frame rate for frames that do not say how long they are shown."""
    rate = _codec_rate(stream) or float(stream.average_rate or stream.base_rate or 0)
    return rate if 0 < rate <= 1000 else RATE_HZ
