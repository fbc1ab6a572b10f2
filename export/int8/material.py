"""Material that INT8 is judged on: windows with everything that is known of them, and streams of windows.

In: procedural art, or held-out media of the user's own. Out: a `Material`, the same one every time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from calibration.samples import content_hash, procedural_window_clip
from vaemotion.contract import prompts
from vaemotion.contract.front_end import PATHS, Clip, EncoderInputs, FrontEnd, window_at
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.windows import encode_count
from vaemotion.data.art.art import Work, sample_work, work_seed
from vaemotion.data.art.questions import content_item
from vaemotion.data.clips.held_out import HeldOut, paths_of, report_left_out
from vaemotion.data.clips.source import DamagedClip, window_span_s
from vaemotion.data.instructions import procedural_clip, true_answer
from vaemotion.data.manifest.item import Item

STREAM_READINGS = 16  # successive windows of a stream
MOST_PER_MEDIUM = 8  # windows of one medium; more of them would overlap and say little
_TRIES = 4  # media looked at for each stream that is asked for; short ones have none
_SEED = 7


@dataclass(frozen=True)
class JudgedWindow:
    """A window that ends ``now_s`` seconds after its clip's start, and ``time_s`` after its items' start.

    ``items``: everything that is known of the medium. ``narration``: the text whose tokens are compared;
    None for what the reference itself narrates.
    """

    clip: Clip
    now_s: float
    time_s: float
    items: tuple[Item, ...]
    narration: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that the clip has the media for."""
        return paths_of(self.clip)

    @property
    def work(self) -> str:
        """The work that it is part of; bounds are over works."""
        return self.items[0].work_id

    @property
    def medium(self) -> str:
        """The id of the first item about its medium."""
        return self.items[0].id

    def inputs(self, front_end: FrontEnd) -> EncoderInputs:
        """Build the encoders' inputs of everything that the clip has."""
        return window_at(self.clip, self.now_s, self.paths[-1], front_end)


class Material(Protocol):
    """Windows and streams to judge on.

    ``most``: windows that there are, at most. ``reads``: everything that they depend on, in JSON's types.
    ``compares_affect``: readings are also compared with the reference's own, because not every window is
    rated.
    """

    name: str
    most: int
    reads: Mapping[str, Any]
    compares_affect: bool

    def windows(self) -> Iterator[JudgedWindow]:
        """Yield windows, none of them twice."""
        ...

    def streams(self, most: int) -> Iterator[list[EncoderInputs]]:
        """Yield up to ``most`` streams: successive windows of one medium each, a frame hop apart."""
        ...


# --- procedural art ----------------------------------------------------------------------------------------


class ArtMaterial:
    """``count`` works of procedural art's split "validation", for a model that learned on such works.

    ``question``: that narrations answer. The works have a true answer to the standard one alone.
    """

    name = "procedural art"
    compares_affect = False

    def __init__(self, front_end: FrontEnd, count: int, question: str = prompts.CAPTION.text) -> None:
        self._front_end, self.most = front_end, count
        self._has_answers = question == prompts.CAPTION.text
        self.reads: Mapping[str, Any] = {
            "art": count,
            "front_end": asdict(front_end),
            "has_answers": self._has_answers,
        }

    def windows(self) -> Iterator[JudgedWindow]:
        """Yield one window of each work."""
        for work, clip in judging_clips(self._front_end, self.most):
            items = tuple(content_item(work, "validation", path) for path in PATHS)
            end_s, narration = clip.duration_s, None
            if self._has_answers:
                narration = true_answer(work, prompts.CAPTION)
            yield JudgedWindow(clip, end_s, end_s, items, narration)

    def streams(self, most: int) -> Iterator[list[EncoderInputs]]:
        """Yield streams of the first works."""
        hop_s, span_s = self._front_end.windows.frame_hop_s, stream_span_s(self._front_end)
        for index in range(most):
            clip = procedural_clip(sample_work(work_seed("validation", index)), span_s, hop_s)
            yield stream_inputs(clip, self._front_end)


def judging_clips(front_end: FrontEnd, count: int) -> Iterator[tuple[Work, Clip]]:
    """Yield works of the validation split with their clips. Calibration uses another split."""
    for index in range(count):
        work = sample_work(work_seed("validation", index))
        yield work, procedural_window_clip(work, front_end, _SEED)


# --- the user's own media ----------------------------------------------------------------------------------


class MediaMaterial:
    """Up to ``count`` windows of held-out media: one of each, then others, ``MOST_PER_MEDIUM`` of each."""

    compares_affect = True

    def __init__(self, media: HeldOut, front_end: FrontEnd, count: int) -> None:
        self._media, self._front_end, self.most = media, front_end, count
        self._order = np.random.default_rng([_SEED, 31]).permutation(len(media)).tolist()
        self.name = f"{media.name}, split {media.split}"
        self.reads: Mapping[str, Any] = {
            "media": media.identity,
            "windows": count,
            "front_end": asdict(front_end),
        }

    def windows(self) -> Iterator[JudgedWindow]:
        """Yield windows in rounds over the media, in a seeded order.

        A medium drops out when it gives a window again. Media that cannot be decoded are left out and named.
        Raises UserError for too many of them.
        """
        seen: set[str] = set()
        left_out: list[DamagedClip] = []
        going_on, given = list(self._order), 0
        for seed in range(_SEED, _SEED + MOST_PER_MEDIUM):
            this_round, going_on = going_on, []
            for index in this_round:
                if given == self.most:
                    break
                window = self._window(index, seed, left_out)
                if window is None or (sha256 := content_hash(window.clip)) in seen:
                    continue
                seen.add(sha256)
                going_on.append(index)
                given += 1
                yield window
        report_left_out(left_out, min(self.most, len(self._media)), self._media.name)

    def _window(self, index: int, seed: int, left_out: list[DamagedClip]) -> JudgedWindow | None:
        items = self._media.items(index)
        try:
            found = self._media.window(index, seed, window_span_s(self._front_end))
        except MediaError as error:
            left_out.append(DamagedClip(items[0].id, str(error)))
            return None
        return JudgedWindow(found.clip, found.now_s, found.start_s + found.now_s, items)

    def streams(self, most: int) -> Iterator[list[EncoderInputs]]:
        """Yield streams of media that are long enough."""
        span_s, hop_s = stream_span_s(self._front_end), self._front_end.windows.frame_hop_s
        found = 0
        for index in self._order[: _TRIES * most]:
            if found == most:
                return
            try:
                clip = self._media.window(index, _SEED, span_s).clip
            except MediaError:  # too short, or named among the windows
                continue
            if clip.duration_s >= span_s - hop_s:
                found += 1
                yield stream_inputs(clip, self._front_end)


def stream_span_s(front_end: FrontEnd) -> float:
    """Return the seconds that a stream of ``STREAM_READINGS`` windows needs."""
    return _first_reading_s(front_end) + STREAM_READINGS * front_end.windows.frame_hop_s


def _first_reading_s(front_end: FrontEnd) -> float:
    windows = front_end.windows
    return max(front_end.filled_audio_window_s, windows.visual_window_s) + windows.frame_hop_s


def stream_inputs(clip: Clip, front_end: FrontEnd) -> list[EncoderInputs]:
    """Build the successive windows of a clip of ``stream_span_s``, a frame hop apart."""
    hop_s, path = front_end.windows.frame_hop_s, paths_of(clip)[-1]
    first = encode_count(_first_reading_s(front_end), hop_s)
    return [window_at(clip, (first + step) * hop_s, path, front_end) for step in range(STREAM_READINGS)]


def is_rated(item: Item) -> bool:
    """Return True for an item with valence or arousal of raters."""
    values = (item.valence, item.arousal, item.valence_series, item.arousal_series)
    return item.machine_made is not True and any(value is not None for value in values)
