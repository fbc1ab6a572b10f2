"""Loader of media files as whole clips; PyAV decodes video and sound, OpenCV images.

In: an item of a manifest (or `Media`) and the media root. Out: a `Clip` with upright RGB frames, their
timestamps and one channel of sound at 16 kHz. Times count from the clip's start. A file that cannot be
decoded completely raises `MediaError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from vaemotion.contract.audio import downmix, resample
from vaemotion.contract.front_end import Clip
from vaemotion.contract.media import GAP_S, MediaError, read_image, refuse_unusable, upright
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.manifest.item import Item

MAX_DECODED_BYTES = 4 << 30
_PREROLL_S = 1.0  # the first output of a decoder that starts in mid-stream may be wrong
_TRUNCATION_S = 0.25
# Containers that store their duration. FFmpeg estimates the others', which would reject valid sound files.
_EXACT_DURATION = ("matroska", "mov", "wav", "flac")


T = TypeVar("T")


@dataclass(frozen=True)
class Media:
    """Paths relative to the media root, and the part to read in seconds (None: its start, its end)."""

    video: str | None = None
    image: str | None = None
    audio: str | None = None
    t0: float | None = None
    t1: float | None = None


@dataclass(frozen=True)
class _Part:
    """The part of a file to read."""

    path: Path
    t0_s: float
    t1_s: float  # infinite: to the end


@dataclass
class _Frames:
    frames: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    end_s: float = 0.0  # end of the last frame, from the file's start


def load_clip(media: Item | Media, media_root: Path = Path()) -> Clip:
    """Decode a medium.

    Every frame keeps its own timestamp; the frame shown at ``t0`` gets timestamp 0. Frames are rotated
    upright, alpha is composited on white. Sound is the mean of the channels at 16 kHz; a sound file
    replaces a video's own track. ``t0`` and ``t1`` cut video and sound alike. Raises MediaError for a file
    that is missing, truncated, empty or undecodable, and for more than 4 GiB of frames.
    """
    t0_s, t1_s = media.t0 or 0.0, float("inf") if media.t1 is None else media.t1
    shown, samples = _Frames(), None
    if media.image is not None:
        shown = _Frames([read_image(media_root / media.image)], [0.0])
    elif media.video is not None:
        part = _Part(media_root / media.video, t0_s, t1_s)
        shown, samples = _read_video(part, with_sound=media.audio is None)
    if media.audio is not None:
        samples = _read_sound_file(_Part(media_root / media.audio, t0_s, t1_s))
    if not shown.frames and samples is None:
        raise MediaError("nothing to load; give video, image or audio")
    return Clip(tuple(shown.frames), tuple(shown.times_s), samples)


def _read_video(part: _Part, *, with_sound: bool) -> tuple[_Frames, npt.NDArray[np.float32] | None]:
    shown = _decoded(part, "video", _collect_frames)
    if not shown.frames:
        raise MediaError(f"{part.path} has no video frame{_within(part)}")
    samples, sound_end_s = None, 0.0
    if with_sound and _decoded(part, "video", lambda container, _: bool(container.streams.audio)):
        samples, sound_end_s = _decoded(part, "sound", _collect_samples)
    _refuse_truncated(part, max(shown.end_s, sound_end_s))
    return shown, samples


def _read_sound_file(part: _Part) -> npt.NDArray[np.float32]:
    samples, end_s = _decoded(part, "sound", _collect_samples)
    if samples.size == 0:
        raise MediaError(f"{part.path} has no sound{_within(part)}")
    _refuse_truncated(part, end_s)
    return samples


def _within(part: _Part) -> str:
    return "" if part.t0_s == 0 and part.t1_s == float("inf") else f" between {part.t0_s} s and {part.t1_s} s"


def _decoded(part: _Part, what: str, collect: Callable[[Any, _Part], T]) -> T:
    """Open the file and return what ``collect`` reads from it; every failure becomes a MediaError."""
    refuse_unusable(part.path)
    try:
        with av.open(str(part.path)) as container:
            if not (container.streams.video if what == "video" else container.streams.audio):
                raise MediaError(f"{part.path} has no {what}")
            return collect(container, part)
    except FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise MediaError(f"{part.path} cannot be decoded as {what}: {reason}") from error


def _refuse_truncated(part: _Part, end_s: float) -> None:
    with av.open(str(part.path)) as container:
        declared_s = (container.duration or 0) / av.time_base
        exact = any(name in container.format.name for name in _EXACT_DURATION)
    expected_s = min(declared_s, part.t1_s)
    if exact and end_s < expected_s - _TRUNCATION_S:
        raise MediaError(f"{part.path} is truncated: it ends after {end_s:.2f} s of {expected_s:.2f} s")


def _frames_from(container: Any, stream: Any, part: _Part) -> Iterator[tuple[float, Any]]:
    """Decode frames with their times from the file's start, from shortly before ``t0`` to ``t1``."""
    origin_s = (container.start_time or 0) / av.time_base
    if part.t0_s > 2 * _PREROLL_S:
        target_s = origin_s + part.t0_s - _PREROLL_S
        container.seek(int(target_s / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.time is None:
            raise MediaError(f"{part.path} cannot be read: a frame has no timestamp")
        time_s = frame.time - origin_s
        if time_s >= part.t1_s - EPSILON_S:
            return
        yield time_s, frame


def _collect_frames(container: Any, part: _Part) -> _Frames:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    shown, n_bytes = _Frames(), 0
    before: Any = None  # the newest frame before t0, which is the one shown at t0
    for time_s, frame in _frames_from(container, stream, part):
        if frame.is_corrupt:
            raise MediaError(f"{part.path} is damaged at {time_s:.2f} s")
        shown.end_s = time_s + (frame.duration or 0) * float(frame.time_base)
        if time_s < part.t0_s - EPSILON_S:
            before = frame
            continue
        if before is not None and time_s > part.t0_s + EPSILON_S:
            _add(shown, 0.0, before)
        before = None
        n_bytes += _add(shown, max(0.0, time_s - part.t0_s), frame)
        if n_bytes > MAX_DECODED_BYTES:
            raise MediaError(
                f"{part.path} is too long to decode at once (over 4 GiB of frames); give t0 and t1"
            )
    if before is not None and shown.end_s > part.t0_s:
        _add(shown, 0.0, before)
    return shown


def _add(shown: _Frames, time_s: float, frame: Any) -> int:
    rgb = upright(frame)  # (H, W, 3)
    shown.frames.append(rgb)
    shown.times_s.append(time_s)
    return rgb.nbytes


def _collect_samples(container: Any, part: _Part) -> tuple[npt.NDArray[np.float32], float]:
    """Collect (n,) float32 at 16 kHz from ``t0`` on, and the end of the sound in the file, in seconds."""
    stream = container.streams.audio[0]
    to_float = av.AudioResampler(
        format="fltp"
    )  # the sample format only; the contract's soxr changes the rate
    blocks: list[npt.NDArray[np.float32]] = []
    rate_hz, position, first_s = 0, 0, 0.0
    for time_s, frame in _frames_from(container, stream, part):
        for block in to_float.resample(frame):
            if rate_hz and block.sample_rate != rate_hz:
                raise MediaError(
                    f"{part.path} changes its sample rate from {rate_hz} to {block.sample_rate} Hz"
                )
            if not blocks:
                rate_hz, first_s = block.sample_rate, time_s
            gap = round((time_s - first_s) * rate_hz) - position
            if gap > GAP_S * rate_hz:
                blocks.append(np.zeros(gap, np.float32))
                position += gap
            blocks.append(downmix(np.asarray(block.to_ndarray(), np.float32).T))  # (channels, n) → (n,)
            position += block.samples
    if not blocks:
        return np.zeros(0, np.float32), 0.0
    samples, end_s = np.concatenate(blocks), first_s + position / rate_hz
    skip = round((part.t0_s - first_s) * rate_hz)  # negative: the sound begins after t0
    samples = samples[skip:] if skip >= 0 else np.pad(samples, (-skip, 0))
    if part.t1_s < float("inf"):
        samples = samples[: round((part.t1_s - part.t0_s) * rate_hz)]
    if not np.isfinite(samples).all():
        raise MediaError(f"{part.path} has audio samples that are not finite")
    return resample(samples, rate_hz), end_s
