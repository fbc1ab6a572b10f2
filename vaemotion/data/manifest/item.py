"""Item of a data manifest: one question about a medium, or one label of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "validation", "test")
TASKS = ("content", "emotion")
PAIRINGS = ("synchronised", "matched", "none")
CONSTRUCTS = ("expressed", "induced")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question about one medium, or one label of it.

    ``video``, ``image``, ``audio``: paths relative to the media root. ``t0``, ``t1``: the part of the
    medium in seconds; None is its start or its end. ``pairing``: frames and sound come from one event
    (synchronised), share only the class (matched), or are not paired (none). ``audible``: true when the
    sound alone allows the answer. ``modality``: the path that the item is for. ``valence``, ``arousal``: in
    [-1, 1]; ``_sd`` is their standard deviation over raters. ``construct``: the labels describe the emotion
    that the work expresses or the one that it induces. ``emotion_distribution``: over
    ``contract.emotions.EMOTIONS``. ``sha256``: see `content_sha256`.
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
    audible: bool | None = None
    modality: str
    valence: float | None = None
    arousal: float | None = None
    valence_sd: float | None = None
    arousal_sd: float | None = None
    construct: str | None = None
    emotion_distribution: tuple[float, ...] | None = None
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
        """Encode the item as one line of JSON, without the fields that are None."""
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return json.dumps(present, ensure_ascii=False, allow_nan=False)


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
