"""Rated windows that the confidence of readings is fitted on.

In: procedural art's split "validation", or held-out media with ratings of the emotion that a work expresses:
valence, arousal, and maybe shares over the model's emotions. Out: ``RatedWindow`` records by their number,
the same ones every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from calibration.samples import procedural_window_clip
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import PATHS, Clip, FrontEnd, reads_sound
from vaemotion.contract.media.files import MediaError
from vaemotion.data.art.art import sample_work, work_seed
from vaemotion.data.clips.held_out import HeldOut, paths_of
from vaemotion.data.clips.source import DamagedClip, window_span_s
from vaemotion.data.manifest.item import Item, label_at

CONSTRUCT = "expressed"  # that the confidence of a reading is about
_ART_SEED = 0
_SEED = 53


@dataclass(frozen=True)
class Label:
    """The label of a window: valence and arousal in [-1, 1], its raters' shares over the emotions (k,).

    ``emotions``: None where no rater named emotions of the model's.
    """

    valence: float
    arousal: float
    emotions: npt.NDArray[Any] | None


@dataclass(frozen=True)
class RatedWindow:
    """A window that ends ``now_s`` seconds after its clip's start, with its labels by path.

    ``number``: what is drawn for this window follows from it. ``work``: no work both fits and evaluates.
    """

    clip: Clip
    now_s: float
    labels: Mapping[str, Label]
    number: int
    work: str


class RatedMaterial(Protocol):
    """Windows by their number. ``reads``: everything that they depend on, in JSON's types."""

    name: str
    reads: Mapping[str, Any]

    def __len__(self) -> int: ...

    def window(self, index: int) -> RatedWindow | DamagedClip:
        """Return window ``index``, or why it cannot be used."""
        ...


class RatedArt:
    """``count`` works of procedural art."""

    name = "procedural art"

    def __init__(self, front_end: FrontEnd, emotions: Sequence[str], count: int = 200) -> None:
        assert tuple(emotions) == EMOTIONS, "works have shares over these alone"
        self._front_end, self._count = front_end, count
        self.reads: Mapping[str, Any] = {"art": count}

    def __len__(self) -> int:
        return self._count

    def window(self, index: int) -> RatedWindow:
        """Return the window of a work."""
        work = sample_work(work_seed("validation", index))
        clip = procedural_window_clip(work, self._front_end, _ART_SEED)
        label = Label(work.valence, work.arousal, np.array(work.emotion_distribution))
        return RatedWindow(clip, clip.duration_s, dict.fromkeys(PATHS, label), work.seed, str(work.seed))


class RatedMedia:
    """Up to ``count`` held-out media with ratings, in a seeded order."""

    def __init__(
        self, media: HeldOut, front_end: FrontEnd, emotions: Sequence[str], count: int = 200
    ) -> None:
        self._media, self._front_end, self._emotions = media, front_end, tuple(emotions)
        order = np.random.default_rng(_SEED).permutation(len(media)).tolist()
        self._chosen = [index for index in order if any(self._is_rated(item) for item in media.items(index))][
            :count
        ]
        self.name = f"{media.name}, split {media.split}"
        self.reads: Mapping[str, Any] = {
            "media": media.identity,
            "count": count,
            "front_end": asdict(front_end),
        }

    def __len__(self) -> int:
        return len(self._chosen)

    def window(self, index: int) -> RatedWindow | DamagedClip:
        """Decode a window of a medium."""
        number = self._chosen[index]
        items = self._media.items(number)
        try:
            found = self._media.window(number, _SEED, window_span_s(self._front_end))
        except MediaError as error:
            return DamagedClip(items[0].id, str(error))
        time_s = found.start_s + found.now_s
        labels = {
            item.modality: label
            for item in reversed(items)  # of several ratings of one path the first counts
            if item.modality in self._readable(found.clip)
            and (label := self._label(item, time_s)) is not None
        }
        return RatedWindow(found.clip, found.now_s, labels, number, items[0].work_id)

    def _readable(self, clip: Clip) -> tuple[str, ...]:
        """Return the paths that a clip fills a window of."""
        filled = clip.samples is not None and (
            len(clip.samples) >= round(self._front_end.filled_audio_window_s * SAMPLE_RATE_HZ)
        )
        return tuple(path for path in paths_of(clip) if filled or not reads_sound(path))

    def _is_rated(self, item: Item) -> bool:
        """Return True for an item with valence and arousal that people gave to what the work expresses."""
        rated = item.valence is not None or item.valence_series is not None
        rated = rated and (item.arousal is not None or item.arousal_series is not None)
        return rated and item.construct == CONSTRUCT and item.machine_made is not True

    def _label(self, item: Item, time_s: float) -> Label | None:
        """Return an item's labels at a time; None without valence or arousal."""
        valence, arousal = label_at(item, time_s)
        if not self._is_rated(item) or valence is None or arousal is None:
            return None
        if item.emotion_distribution is None or set(_names(item)) != set(self._emotions):
            return Label(valence, arousal, None)
        shares = dict(zip(_names(item), item.emotion_distribution, strict=True))
        return Label(valence, arousal, np.array([shares[name] for name in self._emotions]))


def _names(item: Item) -> tuple[str, ...]:
    return item.emotion_names or EMOTIONS
