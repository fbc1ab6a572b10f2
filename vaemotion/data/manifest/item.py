"""Item of a data manifest: one question about a medium, or one label of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test")
QUESTION_TASKS = ("content", "emotion")
TASKS = (*QUESTION_TASKS, "clip")
PAIRINGS = ("synchronised", "matched", "none")
CONSTRUCTS = ("expressed", "induced")
EPSILON = 1e-6  # values of a series; far below the time between two


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question about one medium, or one label of it, or a clip without either.

    ``video``, ``image``, ``audio``: paths relative to the media root. ``t0``, ``t1``: the part of the
    medium in seconds; None is its start or its end. ``pairing``: frames and sound come from one event
    (synchronised), share only the class (matched), or are not paired (none). ``task``: what the item is for;
    a "clip" needs neither a question nor labels. ``label``: free text that names what the medium shows or
    sounds like. ``audible``: true when the sound alone allows the answer. ``modality``: the path that the
    item is for.

    ``valence``, ``arousal``: in [-1, 1]; ``_sd`` is their standard deviation over raters, ``_sign`` their
    sign where nothing else is known, -1 or 1. ``_series``: their course, with ``series_rate_hz`` values a
    second. ``series_start_s``: time of its first value in seconds from ``t0``. ``reaction_lag_s``: seconds
    by which the raters answered late; see `label_at`. ``construct``: the labels describe the emotion that
    the work expresses or the one that it induces. ``emotion_distribution``: over ``emotion_names``; None for
    the names is ``contract.emotions.EMOTIONS``. ``utterances``: free-text answers of raters.
    ``machine_made``: true for labels that a model or a rule gave; these count no raters. ``sha256``: see
    `content_sha256`.
    """

    id: str
    video: str | None = None
    image: str | None = None
    audio: str | None = None
    t0: float | None = None
    t1: float | None = None
    pairing: str
    question: str | None = None
    answer: str | None = None
    options: tuple[str, ...] | None = None
    answer_index: int | None = None
    task: str
    label: str | None = None
    audible: bool | None = None
    modality: str
    valence: float | None = None
    arousal: float | None = None
    valence_sd: float | None = None
    arousal_sd: float | None = None
    valence_sign: int | None = None
    arousal_sign: int | None = None
    valence_series: tuple[float, ...] | None = None
    arousal_series: tuple[float, ...] | None = None
    series_rate_hz: float | None = None
    series_start_s: float = 0.0
    reaction_lag_s: float = 0.0
    construct: str | None = None
    emotion_names: tuple[str, ...] | None = None
    emotion_distribution: tuple[float, ...] | None = None
    utterances: tuple[str, ...] | None = None
    machine_made: bool | None = None
    n_raters: int | None = None
    split: str
    work_id: str
    creator_id: str
    source: str
    license: str
    sha256: str

    @property
    def media(self) -> tuple[str, ...]:
        """The item's paths, in the order that `content_sha256` reads them."""
        return tuple(path for path in (self.video, self.image, self.audio) if path is not None)

    def to_json(self) -> str:
        """Encode the item as one line of JSON, without the fields that have their default."""
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        return json.dumps(present, ensure_ascii=False, allow_nan=False)


def label_at(item: Item, now_s: float) -> tuple[float | None, float | None]:
    """Return the valence and the arousal of a window that ends at ``now_s``, in seconds from ``t0``.

    A series gives its value at ``now_s`` plus the reaction lag, between two values their linear
    interpolation, and None outside the time that was rated. Without a series the item's constant label
    counts, which may be None.
    """
    return (
        item.valence if item.valence_series is None else _series_at(item.valence_series, item, now_s),
        item.arousal if item.arousal_series is None else _series_at(item.arousal_series, item, now_s),
    )


def _series_at(series: tuple[float, ...], item: Item, now_s: float) -> float | None:
    if item.series_rate_hz is None:
        raise ValueError(f"item {item.id!r} has a series without series_rate_hz")
    position = (now_s + item.reaction_lag_s - item.series_start_s) * item.series_rate_hz
    # Rounding errors of the multiplication must not cut off the first and the last value.
    if not -EPSILON <= position <= len(series) - 1 + EPSILON:
        return None
    return float(np.interp(position, np.arange(len(series)), series))


class PlacedItem(NamedTuple):
    """An item with its manifest and its line number, which counts from 1."""

    manifest: Path
    line: int
    item: Item


@dataclass(frozen=True)
class Problem:
    """A problem in a manifest. ``line`` counts from 1; 0 stands for the file as a whole."""

    manifest: Path
    line: int
    message: str


def content_sha256(media: Iterable[Path]) -> str:
    """Compute the hexadecimal SHA-256 of the files' bytes, concatenated in the order video, image, audio.

    For a single file this is the value that ``sha256sum`` prints.
    """
    digest = hashlib.sha256()
    for path in media:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
