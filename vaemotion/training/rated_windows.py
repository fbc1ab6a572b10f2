"""Windows of rated works for stage 2, several of each: the views of an item.

In: an item with its medium. Out: `View`s, the encoders' inputs with the time at which each window ends. A
work that lasts longer than a window has views all over the time that its labels hold for. Views beside the
first are also changed a little: pictures are moved, sound becomes louder or softer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.front_end import Clip, FrontEnd, audio_window, reads_frames, reads_sound, window_at
from vaemotion.contract.image import prepare_frame
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.media.medium import Medium
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.clips.source import ClipSource, window_span_s
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import Media, load_clip

STILL, SOUND, FILM = "still", "sound", "film"
VIEWS = {STILL: 24, SOUND: 8, FILM: 4}  # of an item, at least; the unchanged one first
MOST_VIEWS = 64  # of a long work, whose windows would overlap by half

Float32 = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RatedWork:
    """A rated item and its medium: files below a media root, or clip ``index`` of ``clips``."""

    item: Item
    clips: ClipSource | None = None
    index: int = 0

    @property
    def kind(self) -> str:
        """STILL, SOUND or FILM: what a view of it holds."""
        item = self.item
        if self.clips is None and item.modality == "visual" and item.video is None and item.image is not None:
            return STILL
        return SOUND if self.clips is None and item.modality == "audio" else FILM


@dataclass(frozen=True)
class View:
    """One window of a work as the encoders take it.

    ``end_s``: its end, in seconds from the item's ``t0``. ``pixels`` (n, 3, side, side), oldest frame first,
    with ``frame_ages_s`` (n,); n may be 0. ``log_mel``: (1, frames, mels), or (0, frames, mels) without
    sound, which ended ``audio_age_s`` before the window did.
    """

    end_s: float
    pixels: Float32
    frame_ages_s: Float32
    log_mel: Float32
    audio_age_s: float = 0.0


def views_of(work: RatedWork, media_root: Path, front_end: FrontEnd, seed: Sequence[int]) -> list[View]:
    """Make the views of a work; none where its labels hold for no window of it.

    Raises MediaError for a medium that cannot be decoded, or that lacks what the item is for.
    """
    rng = np.random.default_rng(seed)
    if work.kind == STILL:
        return _still_views(load_clip(work.item, media_root).frames[0], front_end, rng)
    if work.kind == SOUND:
        return _sound_views(work.item, media_root, front_end, rng)
    return _film_views(work, media_root, front_end, rng)


def rated_span_s(item: Item) -> tuple[float, float]:
    """Return the earliest and the latest end of a window that has a label, in seconds from ``t0``."""
    series = item.valence_series or item.arousal_series
    signs = (item.valence_sign, item.arousal_sign)
    constant = (item.valence, item.arousal, item.emotion_distribution, item.utterances, *signs)
    if series is None or any(label is not None for label in constant):
        return 0.0, math.inf
    assert item.series_rate_hz is not None, "the manifest's rules: a series has a rate"
    first_s = item.series_start_s - item.reaction_lag_s
    return first_s, first_s + (len(series) - 1) / item.series_rate_hz


def window_ends_s(
    item: Item, duration_s: float, span_s: float, least: int, rng: np.random.Generator
) -> list[float]:
    """Draw the ends of windows of ``span_s`` seconds, evenly over the time that has labels, ascending.

    Windows overlap by about a half; there are ``least`` of them at least and ``MOST_VIEWS`` at most. Returns
    none where no window ends in a time that has labels.
    """
    from_s, to_s = rated_span_s(item)
    from_s, to_s = max(from_s, min(span_s, duration_s)), min(to_s, duration_s)
    if from_s > to_s:
        return []
    count = min(max(least, math.ceil(2 * (to_s - from_s) / span_s)), MOST_VIEWS)
    edges_s = np.linspace(from_s, to_s, count + 1)
    return [float(end_s) for end_s in rng.uniform(edges_s[:-1], edges_s[1:])]


# --- stills -------------------------------------------------------------------------------------------------


def _still_views(image: Picture, front_end: FrontEnd, rng: np.random.Generator) -> list[View]:
    pictures = [image, *(moved([image], rng)[0] for _ in range(VIEWS[STILL] - 1))]
    no_sound = np.zeros((0, front_end.audio_window_frames, front_end.log_mel.n_mels), np.float32)
    newest = np.zeros(1, np.float32)
    return [
        View(0.0, prepare_frame(picture, front_end.image)[None], newest, no_sound) for picture in pictures
    ]


def moved(pictures: Sequence[Picture], rng: np.random.Generator) -> list[Picture]:
    """Move pictures (H, W, 3) of one size, all in the same way.

    They are mirrored or not, turned by up to 15°, scaled by up to 10 % and moved by up to 6 %.
    """
    height, width = pictures[0].shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-15, 15), rng.uniform(0.9, 1.1))
    turn[:, 2] += rng.uniform(-0.06, 0.06, 2) * (width, height)
    is_mirrored = rng.random() < 0.5
    changed: list[Picture] = []
    for picture in pictures:
        background = tuple(int(v) for v in np.median(picture[:2].reshape(-1, 3), axis=0))
        mirrored = picture[:, ::-1] if is_mirrored else picture
        warped = cv2.warpAffine(
            np.ascontiguousarray(mirrored),
            turn,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=background,
        )
        changed.append(np.asarray(warped, np.uint8))
    return changed


# --- sounds -------------------------------------------------------------------------------------------------


def _sound_views(item: Item, media_root: Path, front_end: FrontEnd, rng: np.random.Generator) -> list[View]:
    """Return the last window of a sound, then changed windows of all of it.

    A changed one is cut by up to 8 % at its start, delayed by up to 0.2 s, and up to 3 dB louder or softer.
    """
    samples = load_clip(Media(audio=item.audio or item.video, t0=item.t0, t1=item.t1), media_root).samples
    assert samples is not None, "a sound that was loaded has samples"
    duration_s, span_s = len(samples) / SAMPLE_RATE_HZ, front_end.filled_audio_window_s
    if duration_s <= span_s + EPSILON_S and rated_span_s(item)[1] >= duration_s:
        ends_s = [duration_s] * VIEWS[SOUND]  # all of it, each time
    else:
        ends_s = window_ends_s(item, duration_s, span_s, VIEWS[SOUND], rng)
        ends_s = ends_s[-1:] + ends_s[:-1]
        if ends_s and rated_span_s(item)[1] >= duration_s:
            ends_s[0] = duration_s  # what a device reads of it
    views: list[View] = []
    for number, end_s in enumerate(ends_s):
        end = round(end_s * SAMPLE_RATE_HZ)
        heard = samples[max(0, end - round(2 * span_s * SAMPLE_RATE_HZ)) : end]
        if number:
            heard = heard[int(rng.uniform(0, 0.08) * min(len(heard), span_s * SAMPLE_RATE_HZ)) :]
            silence = np.zeros(int(rng.uniform(0, 0.2) * SAMPLE_RATE_HZ), np.float32)
            heard = np.concatenate([silence, heard]) * np.float32(10 ** (rng.uniform(-3, 3) / 20))
        views.append(_sound_view(end_s, heard, front_end))
    return views


def _sound_view(end_s: float, heard: Float32, front_end: FrontEnd) -> View:
    side = front_end.image.side_px
    log_mel = audio_window(heard, len(heard) / SAMPLE_RATE_HZ, front_end)[None]
    return View(end_s, np.zeros((0, 3, side, side), np.float32), np.zeros(0, np.float32), log_mel)


# --- films --------------------------------------------------------------------------------------------------


def _film_views(
    work: RatedWork, media_root: Path, front_end: FrontEnd, rng: np.random.Generator
) -> list[View]:
    """Return windows all over a film; every second one is moved, and up to 3 dB louder or softer."""
    path = work.item.modality
    views: list[View] = []
    for number, (clip, now_s, end_s) in enumerate(_film_windows(work, media_root, front_end, rng)):
        if reads_frames(path) and not clip.frames:
            raise MediaError("it has no pictures")
        if reads_sound(path) and clip.samples is None:
            raise MediaError("it has no sound")
        shown = changed(clip, rng) if number % 2 else clip
        inputs = window_at(shown, now_s, path, front_end)
        views.append(View(end_s, inputs.pixels, inputs.frame_ages_s, inputs.log_mel, inputs.audio_age_s))
    return views


def _film_windows(
    work: RatedWork, media_root: Path, front_end: FrontEnd, rng: np.random.Generator
) -> Iterator[tuple[Clip, float, float]]:
    """Decode the windows of a film: each as a clip, its end in it, and its end in the item."""
    item, span_s = work.item, window_span_s(front_end)
    if work.clips is not None:  # shards choose the time of a window themselves
        earliest_s, latest_s = rated_span_s(item)
        for seed in rng.integers(2**31, size=VIEWS[FILM]):
            window = work.clips.window(work.index, int(seed), span_s)
            end_s = window.start_s + window.now_s
            if earliest_s <= end_s <= latest_s:
                yield window.clip, window.now_s, end_s
        return
    for end_s in window_ends_s(item, duration_s(item, media_root), span_s, VIEWS[FILM], rng):
        start_s = max(0.0, end_s - span_s)
        from_s, to_s = (item.t0 or 0.0) + start_s, (item.t0 or 0.0) + end_s + EPSILON_S
        media = Media(item.video, item.image, item.audio, from_s, to_s)
        yield load_clip(media, media_root, front_end.windows.frame_hop_s), end_s - start_s, end_s


def changed(clip: Clip, rng: np.random.Generator) -> Clip:
    """Move all frames of a clip in the same way, and make its sound up to 3 dB louder or softer."""
    gain = np.float32(10 ** (rng.uniform(-3, 3) / 20))
    return replace(
        clip,
        frames=tuple(moved(clip.frames, rng)) if clip.frames else (),
        samples=None if clip.samples is None else clip.samples * gain,
    )


def duration_s(item: Item, media_root: Path) -> float:
    """Return the seconds of an item's part of its film or sound. Raises MediaError where they are unknown."""
    path = item.video or item.audio
    assert path is not None, "an image alone has no windows in time"
    end_s = item.t1 if item.t1 is not None else Medium(media_root / path).declared_end_s
    if end_s is None:  # a raw stream does not say how long it is
        return load_clip(item, media_root).duration_s
    return end_s - (item.t0 or 0.0)
