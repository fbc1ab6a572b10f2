"""Loader of media files as whole clips, by the decoder that the device streams with.

In: an item of a manifest (or `Media`) and the media root. Out: a `Clip` with upright RGB frames, their
timestamps and one channel of sound at 16 kHz. Times count from the clip's start. A file that cannot be
decoded completely raises `MediaError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.front_end import Clip
from vaemotion.contract.image import Picture
from vaemotion.contract.media.files import FilePart, MediaError, MediaFile
from vaemotion.contract.media.medium import Medium, Shown
from vaemotion.contract.media.remarks import Remark
from vaemotion.contract.media.still import read_image
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.manifest.item import Item

MAX_DECODED_BYTES = 4 << 30
# Share of damaged packets, above which a file is refused; joined recordings have one at each joint.
MOST_DAMAGED = 0.02

T = TypeVar("T")


@dataclass(frozen=True)
class Media:
    """Paths relative to the media root, or parts of files, and the seconds to read (None: start, end)."""

    video: str | FilePart | None = None
    image: str | FilePart | None = None
    audio: str | FilePart | None = None
    t0: float | None = None
    t1: float | None = None


@dataclass(frozen=True)
class _Part:
    """The part of a file to read."""

    path: MediaFile
    t0_s: float
    t1_s: float  # infinite: to the end

    def __str__(self) -> str:
        if self.t0_s == 0 and self.t1_s == float("inf"):
            return ""
        return f" between {self.t0_s} s and {self.t1_s} s"


@dataclass
class _Frames:
    frames: list[Picture] = field(default_factory=list[Picture])
    times_s: list[float] = field(default_factory=list[float])
    # End of the last frame, from the file's start; None where the part ends before the file.
    end_s: float | None = 0.0


def load_clip(media: Item | Media, media_root: Path = Path(), frame_grid_s: float | None = None) -> Clip:
    """Decode a medium.

    Every frame keeps its own timestamp; the frame shown at ``t0`` gets timestamp 0. With ``frame_grid_s`` the
    frames that are shown at its multiples, and the last one, are kept alone; windows on that grid
    are the same. Frames are rotated upright, alpha is composited on white. Sound is the mean of the channels
    at 16 kHz; a sound file replaces a video's own track. ``t0`` and ``t1`` cut video and sound alike. Raises
    MediaError for a file that is missing, truncated, empty or undecodable, and for more than 4 GiB of frames.
    """
    t0_s, t1_s = media.t0 or 0.0, float("inf") if media.t1 is None else media.t1
    shown, samples = _Frames(), None
    if media.image is not None:
        shown = _Frames([read_image(_placed(media.image, media_root))], [0.0])
    elif media.video is not None:
        part = _Part(_placed(media.video, media_root), t0_s, t1_s)
        shown, samples = _read_video(part, frame_grid_s, with_sound=media.audio is None)
    if media.audio is not None:
        samples = _read_sound_file(_Part(_placed(media.audio, media_root), t0_s, t1_s))
    if not shown.frames and samples is None:
        raise MediaError("nothing to load; give video, image or audio")
    return Clip(tuple(shown.frames), tuple(shown.times_s), samples)


def _placed(file: str | FilePart, media_root: Path) -> MediaFile:
    return file if isinstance(file, FilePart) else media_root / file


def _read_video(
    part: _Part, frame_grid_s: float | None, *, with_sound: bool
) -> tuple[_Frames, npt.NDArray[np.float32] | None]:
    medium = _open(part, "video")
    shown = _collect_frames(medium, part, frame_grid_s)
    if not shown.frames:
        raise MediaError(f"{part.path} has no video frame{part}")
    samples, sound_end_s = _collect_samples(medium, part) if with_sound and medium.has_sound else (None, None)
    _refuse_incomplete(medium, shown.end_s, sound_end_s)
    return shown, samples


def _read_sound_file(part: _Part) -> npt.NDArray[np.float32]:
    medium = _open(part, "sound")
    samples, end_s = _collect_samples(medium, part)
    if samples.size == 0:
        raise MediaError(f"{part.path} has no sound{part}")
    _refuse_incomplete(medium, None, end_s)
    return samples


def _open(part: _Part, what: str) -> Medium:
    medium = Medium(part.path)
    if medium.wav is not None and medium.wav.truncated:
        held, promised = medium.wav.held_bytes, medium.wav.promised_bytes
        raise MediaError(f"{part.path} is truncated: it holds {held} of {promised} bytes of sound")
    if not (medium.has_pictures if what == "video" else medium.has_sound):
        raise MediaError(f"{part.path} has no {what}")
    return medium


def _refuse_incomplete(medium: Medium, frames_end_s: float | None, sound_end_s: float | None) -> None:
    cut_off = medium.cut_off(frames_end_s, sound_end_s)
    if cut_off is not None:
        raise MediaError(f"{medium.path} is truncated: {cut_off.text}")
    for stream in (medium.video, medium.audio):
        if stream is not None and stream.damaged_share > MOST_DAMAGED:
            raise MediaError(f"{medium.path} is damaged: {stream.damaged} of {stream.packets} packets")


def _decoded(decoded: Iterator[T | Remark]) -> Iterator[T]:
    return (each for each in decoded if not isinstance(each, Remark))


def _collect_frames(medium: Medium, part: _Part, frame_grid_s: float | None) -> _Frames:
    shown, n_bytes, converter = _Frames(), 0, VideoReformatter()
    newest: Shown | None = None  # of the frames so far; before t0 it is the one shown at t0
    for each in _decoded(medium.pictures(part.t0_s)):
        if each.time_s >= part.t1_s - EPSILON_S:
            shown.end_s = None
            break
        shown.end_s = each.end_s
        if newest is not None and _is_shown(newest, each, part.t0_s, frame_grid_s):
            n_bytes += _add(shown, max(0.0, newest.time_s - part.t0_s), newest.picture(converter))
            if n_bytes > MAX_DECODED_BYTES:
                raise MediaError(
                    f"{part.path} is too long to decode at once (over 4 GiB of frames); give t0 and t1"
                )
        newest = each
    if newest is not None and (shown.end_s is None or shown.end_s > part.t0_s):
        _add(shown, max(0.0, newest.time_s - part.t0_s), newest.picture(converter))
    return shown


def _is_shown(frame: Shown, following: Shown, t0_s: float, grid_s: float | None) -> bool:
    """Return True where a frame is seen at ``t0_s`` or later, on the grid if there is one."""
    if following.time_s <= t0_s + EPSILON_S:
        return False
    if grid_s is None:
        return True
    time_s = max(0.0, frame.time_s - t0_s)
    first_s = math.ceil(time_s / grid_s - EPSILON_S / grid_s) * grid_s  # grid point that shows it first
    return first_s < following.time_s - t0_s - EPSILON_S


def _add(shown: _Frames, time_s: float, rgb: Picture) -> int:
    shown.frames.append(rgb)
    shown.times_s.append(time_s)
    return rgb.nbytes


def _collect_samples(medium: Medium, part: _Part) -> tuple[npt.NDArray[np.float32], float | None]:
    """Collect (n,) float32 at 16 kHz of the part.

    Returns also the end of the sound in the file, in seconds; None where the part ends before it.
    """
    blocks: list[npt.NDArray[np.float32]] = []
    wanted = (part.t1_s - part.t0_s) * SAMPLE_RATE_HZ  # may be infinite
    given = 0
    for block in _decoded(medium.sound(part.t0_s)):
        blocks.append(block)
        given += len(block)
        if given >= wanted:
            return np.concatenate(blocks)[: round(wanted)], None
    end_s = part.t0_s + given / SAMPLE_RATE_HZ
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), end_s
