"""Adapters of human-labeled data sets: abstract shapes and sounds, silhouettes, recordings.

`sievers`: shapes and sounds; `bass`: silhouettes; `esc10`: recordings of ten classes. In: the set's folder.
Out: its items and their folds, from which `build` makes a manifest.
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
from vaemotion.data.manifest.item import Item
from vaemotion.data.published.adapter import ItemsAndFolds, Source, assign_folds, track_reading
from vaemotion.data.published.label_table import LabelRow, read_table

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
}
"""Name of the class folder → name of the class in this project."""
# SPDX has no identifier for Sampling Plus, which Creative Commons retired.
_ESC10_LICENSES = {
    "CC0": "CC0-1.0",
    "CC-BY": "CC-BY-3.0",
    "CC-Sampling+": "LicenseRef-CC-Sampling-Plus-1.0",
}


def sievers(source: Source) -> ItemsAndFolds:
    """Read the set of Sievers et al.: abstract shapes and sounds with the arousal that they express.

    Source: Sievers, Lee, Haslett & Wheatley 2019, Proc. R. Soc. B 286:20190513. The arousal comes from
    forced choices (angry or sad, excited or peaceful). Raises UserError for a folder in another layout.
    """
    rows = read_table(source.folder / "labels.csv", _SIEVERS_COLUMNS, _SIEVERS_LAYOUT)
    items = [_sievers_item(row, source) for row in track_reading(rows, "sievers")]
    return items, assign_folds([_stem(row) for row in rows])


def _sievers_item(row: LabelRow, source: Source) -> Item:
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
        # labels.csv names no authors, and b00 to b12 are series of stimuli, so each stimulus is its own
        # creator.
        creator_id=f"sievers:{_stem(row)}",
        source=f"sievers-{kind}",
        license="BSD-3-Clause",  # the text of the set's LICENSE
        sha256=sha256,
    )


def _stem(row: LabelRow) -> str:
    return PurePosixPath(row.text("file")).stem


def bass(source: Source) -> ItemsAndFolds:
    """Read BASS: silhouettes with valence and arousal.

    Source: Kawai, Lukács & Ansorge 2021, Behav. Res. Methods 53:2558. Raises UserError for a folder in
    another layout.
    """
    rows = read_table(source.folder / "labels.csv", _BASS_COLUMNS, _BASS_LAYOUT)
    items = [_bass_item(row, source) for row in track_reading(rows, "bass")]
    return items, assign_folds([row.text("concept") for row in rows])


def _bass_item(row: LabelRow, source: Source) -> Item:
    path, sha256 = source.medium(row.text("file"), row.where)
    return Item(
        id=f"bass-{_stem(row)}",
        image=path,
        pairing="none",
        task="emotion",
        audible=False,
        modality="visual",
        label=row.text("concept"),
        valence=row.number("valence", -1, 1),
        arousal=row.number("arousal", -1, 1),
        # The labels are already (mean - 5) / 4; their standard deviations are still on the scale of 1 to 9.
        valence_sd=round(row.number("valence_sd_1to9", 0, 8) / 4, 6),
        arousal_sd=round(row.number("arousal_sd_1to9", 0, 8) / 4, 6),
        # An assumption: the instruction is unknown, and ratings of images on such scales usually ask for
        # the rater's own reaction.
        construct="induced",
        n_raters=row.count("n_raters") or None,
        split="train",
        work_id=f"bass-{_stem(row)}",
        # The column `source` names stock sites, not creators; three quarters would be "Pixabay". The
        # concept must not be in two splits: abuse.png and abuse2.png show the same thing.
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
    """One recording. ``name``: class folder and file name, such as ``dog_bark/1-100032-A.ogg``."""

    name: str
    fold: int
    freesound_id: str


def esc10(source: Source) -> ItemsAndFolds:
    """Read ESC-10: recordings with a question about their class, in the set's own folds.

    Source: Piczak 2015, "ESC: Dataset for Environmental Sound Classification", ACM MM. Raises UserError for
    a folder in another layout.
    """
    credits_of = _read_credits(source.folder / "README.txt")
    recordings = _recordings(source.folder)
    items = [_esc10_item(recording, credits_of, source) for recording in track_reading(recordings, "esc10")]
    return items, [recording.fold for recording in recordings]


def _recordings(folder: Path) -> list[_Recording]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if unknown := sorted(set(classes) - set(ESC10_CLASSES)):
        raise UserError(f"{folder / unknown[0]} is not a class of esc10; expected {', '.join(ESC10_CLASSES)}")
    if missing := sorted(set(ESC10_CLASSES) - set(classes)):
        raise UserError(f"{folder} lacks the class folder {missing[0]}; --from takes {_ESC10_LAYOUT}")
    return [
        _recording(path)
        for name in classes
        for path in sorted((folder / name).iterdir())
        if path.name[0] != "."
    ]


def _recording(path: Path) -> _Recording:
    named = re.fullmatch(r"([1-5])-(\d+)-[A-Z]\.ogg", path.name)
    if named is None:
        raise UserError(f"{path} must be named fold-number-take.ogg, such as 1-100032-A.ogg")
    return _Recording(f"{path.parent.name}/{path.name}", int(named[1]), named[2])


def _read_credits(path: Path) -> dict[str, _Credit]:
    """Read each file's author and license, from lines like ``- [1-100032-A.ogg]: clip derived ... [CC0]``."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; --from takes {_ESC10_LAYOUT}")
    line = re.compile(r"- \[(\S+\.ogg)\]:.*freesound\.org/people/([^/\s]+)/.*\[([^\[\]]+)\]\s*")
    found = map(line.fullmatch, path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return {match[1]: _Credit(unquote(match[2]), match[3]) for match in found if match}


def _esc10_item(recording: _Recording, credits_of: dict[str, _Credit], source: Source) -> Item:
    path, sha256 = source.medium(recording.name, "the class folder")
    folder, file = recording.name.split("/")
    credit = credits_of.get(file)
    if credit is None or credit.license not in _ESC10_LICENSES:
        raise UserError(
            f"{source.folder / 'README.txt'} must credit {file} with a Freesound author and a license out of "
            f"{', '.join(_ESC10_LICENSES)}"
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
        label=answer,
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
