"""Sets that people labelled, as they are published: abstract shapes and sounds (sievers), silhouettes (bass),
recordings of ten classes (esc10).

In: the set's folder. Out: its items and their folds; `published` makes a manifest of them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np

from vaemotion.contract.errors import UserError
from vaemotion.contract.prompts import CONTENT
from vaemotion.data.adapter import ItemsAndFolds, Source, dealt_folds, reading
from vaemotion.data.item import Item
from vaemotion.data.label_table import Row, read_table

_SIEVERS_LAYOUT = "the sievers folder with labels.csv, shapes/ and sounds/"
_SIEVERS_COLUMNS = ("file", "stimType", "arousal01", "n_neg", "n_pos")
_BASS_LAYOUT = "the bass folder with labels.csv and images/"
_BASS_COLUMNS = ("file", "concept", "valence", "arousal", "valence_sd_1to9", "arousal_sd_1to9", "n_raters")
_ESC10_LAYOUT = "the esc10 folder with README.txt and a folder of .ogg files for each class"
ESC10_CLASSES = {
    "baby_cry": "baby cry",
    "chainsaw": "chainsaw",
    "clock_tick": "clock tick",
    "dog_bark": "dog bark",
    "fire_crackling": "fire crackling",
    "helicopter": "helicopter",
    "person_sneeze": "sneeze",
    "rain": "rain",
    "rooster": "rooster",
    "sea_waves": "sea waves",
}  # folder → this project's name of the class
# SPDX knows no identifier for Sampling Plus, which Creative Commons retired.
_ESC10_LICENSES = {
    "CC0": "CC0-1.0",
    "CC-BY": "CC-BY-3.0",
    "CC-Sampling+": "LicenseRef-CC-Sampling-Plus-1.0",
}


def sievers(source: Source) -> ItemsAndFolds:
    """Sievers, Lee, Haslett & Wheatley 2019, Proc. R. Soc. B 286:20190513: what a shape or a sound expresses, by forced choice
    (angry or sad, excited or peaceful), as arousal. Raises UserError for a folder that is laid out otherwise."""
    rows = read_table(source.folder / "labels.csv", _SIEVERS_COLUMNS, _SIEVERS_LAYOUT)
    items = [_sievers_item(row, source) for row in reading(rows, "sievers")]
    return items, dealt_folds([_stem(row) for row in rows])


def _sievers_item(row: Row, source: Source) -> Item:
    path, sha256 = source.medium(row.text("file"), row.where)
    is_sound = row.one_of("stimType", ("image", "sound")) == "sound"
    kind = "sounds" if is_sound else "shapes"
    return Item(
        id=f"sievers-{kind}-{_stem(row)}",
        image=None if is_sound else path,
        audio=path if is_sound else None,
        pairing="none",
        task="emotion",
        audible=is_sound,
        modality="audio" if is_sound else "visual",
        arousal=round(2 * row.number("arousal01", 0, 1) - 1, 6),
        construct="expressed",
        n_raters=(row.count("n_neg") + row.count("n_pos")) or None,
        split="train",
        work_id=f"sievers-{_stem(row)}",
        # labels.csv names no authors, and b00 to b12 are series of stimuli: each stimulus stands for itself.
        creator_id=f"sievers:{_stem(row)}",
        source=f"sievers-{kind}",
        license="BSD-3-Clause",  # the text of the set's LICENSE
        sha256=sha256,
    )


def _stem(row: Row) -> str:
    return PurePosixPath(row.text("file")).stem


def bass(source: Source) -> ItemsAndFolds:
    """Kawai, Lukács & Ansorge 2021, Behav. Res. Methods 53:2558: valence and arousal of silhouettes. Raises UserError
    for a folder that is laid out otherwise."""
    rows = read_table(source.folder / "labels.csv", _BASS_COLUMNS, _BASS_LAYOUT)
    items = [_bass_item(row, source) for row in reading(rows, "bass")]
    return items, dealt_folds([row.text("concept") for row in rows])


def _bass_item(row: Row, source: Source) -> Item:
    path, sha256 = source.medium(row.text("file"), row.where)
    return Item(
        id=f"bass-{_stem(row)}",
        image=path,
        pairing="none",
        task="emotion",
        audible=False,
        modality="visual",
        valence=row.number("valence", -1, 1),
        arousal=row.number("arousal", -1, 1),
        # The labels are (mean - 5) / 4 already, their spread still stands on the scale of 1 to 9.
        valence_sd=round(row.number("valence_sd_1to9", 0, 8) / 4, 6),
        arousal_sd=round(row.number("arousal_sd_1to9", 0, 8) / 4, 6),
        # Our reading: we know neither instruction nor wording, and ratings of pictures on such scales ask for the rater's own reaction.
        construct="induced",
        n_raters=row.count("n_raters") or None,
        split="train",
        work_id=f"bass-{_stem(row)}",
        # The column `source` names stock sites, and a site is not a creator: three quarters would be "Pixabay". What must
        # not cross the splits is the concept: abuse.png and abuse2.png show the same thing.
        creator_id=f"bass:{row.text('concept')}",
        source="bass",
        license="CC-BY-4.0",
        sha256=sha256,
    )


@dataclass(frozen=True)
class _Credit:
    author: str
    license: str


@dataclass(frozen=True)
class _Recording:
    """``name``: class folder and file name, as ``dog_bark/1-100032-A.ogg``."""

    name: str
    fold: int
    freesound_id: str


def esc10(source: Source) -> ItemsAndFolds:
    """Piczak 2015, "ESC: Dataset for Environmental Sound Classification", ACM MM: which of ten things is it? The folds are
    the set's own. Raises UserError for a folder that is laid out otherwise."""
    credits_of = _read_credits(source.folder / "README.txt")
    recordings = _recordings(source.folder)
    items = [_esc10_item(recording, credits_of, source) for recording in reading(recordings, "esc10")]
    return items, [recording.fold for recording in recordings]


def _recordings(folder: Path) -> list[_Recording]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if unknown := sorted(set(classes) - set(ESC10_CLASSES)):
        raise UserError(f"{folder / unknown[0]} is no class of esc10, expected {', '.join(ESC10_CLASSES)}")
    if missing := sorted(set(ESC10_CLASSES) - set(classes)):
        raise UserError(f"{folder} lacks the class folder {missing[0]}, give with --from {_ESC10_LAYOUT}")
    return [
        _recording(path)
        for name in classes
        for path in sorted((folder / name).iterdir())
        if path.name[0] != "."
    ]


def _recording(path: Path) -> _Recording:
    named = re.fullmatch(r"([1-5])-(\d+)-[A-Z]\.ogg", path.name)
    if named is None:
        raise UserError(f"{path} must be named fold-number-take.ogg, as 1-100032-A.ogg")
    return _Recording(f"{path.parent.name}/{path.name}", int(named[1]), named[2])


def _read_credits(path: Path) -> dict[str, _Credit]:
    """Author and licence of each file, from lines as ``- [1-100032-A.ogg]: clip derived from ... [CC0]``."""
    if not path.is_file():
        raise UserError(f"{path} does not exist, give with --from {_ESC10_LAYOUT}")
    line = re.compile(r"- \[(\S+\.ogg)\]:.*freesound\.org/people/([^/\s]+)/.*\[([^\[\]]+)\]\s*")
    found = map(line.fullmatch, path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return {match[1]: _Credit(unquote(match[2]), match[3]) for match in found if match}


def _esc10_item(recording: _Recording, credits_of: dict[str, _Credit], source: Source) -> Item:
    path, sha256 = source.medium(recording.name, "the class folder")
    folder, file = recording.name.split("/")
    credit = credits_of.get(file)
    if credit is None or credit.license not in _ESC10_LICENSES:
        known = ", ".join(_ESC10_LICENSES)
        raise UserError(
            f"{source.folder / 'README.txt'} must credit {file} with a Freesound author and a licence of {known}"
        )
    identifier = f"esc10-{file.removesuffix('.ogg')}"
    answer, options = ESC10_CLASSES[folder], _shuffled_classes(identifier)
    return Item(
        id=identifier,
        audio=path,
        pairing="matched",
        question=CONTENT.text,
        answer=answer,
        options=options,
        answer_index=options.index(answer),
        task=CONTENT.task,
        audible=CONTENT.audible,
        modality="audio",
        split="train",
        work_id=f"esc10-{recording.freesound_id}",  # takes A, B, ... are parts of one recording
        creator_id=f"freesound:{credit.author}",
        source="esc10",
        license=_ESC10_LICENSES[credit.license],
        sha256=sha256,
    )


def _shuffled_classes(seed: str) -> tuple[str, ...]:
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8])
    classes = tuple(ESC10_CLASSES.values())
    return tuple(classes[position] for position in np.random.default_rng(number).permutation(len(classes)))
