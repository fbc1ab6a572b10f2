"""Adapter of LIRIS-ACCEDE continuous: films with the valence and arousal that they induce, each second.

In: the set's folder. Out: its items and their folds, from which `build` makes a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from vaemotion.contract.errors import UserError
from vaemotion.data.manifest.item import Item
from vaemotion.data.published.adapter import (
    OFFICIAL_TEST,
    ItemsAndFolds,
    Source,
    assign_folds,
    by_stem,
    track_reading,
)
from vaemotion.data.published.course import VIDEO_SUFFIXES, Course, rounded, with_course
from vaemotion.data.published.label_table import read_table

_LAYOUT = (
    "a folder that holds, anywhere below it, the films MEDIAEVAL18_NN.mp4 and the annotations "
    "MEDIAEVAL18_NN_Valence-Arousal.txt of LIRIS-ACCEDE (MediaEval 2018)"
)
_COLUMNS = ("Time", "Valence", "Arousal")
_TEST_FILMS = range(54, 66)
_TRAIN_FILMS = range(54)


def liris_accede(source: Source) -> ItemsAndFolds:
    """Read LIRIS-ACCEDE continuous: films with the valence and arousal that they induce, each second.

    Source: Dellandréa, Huigsloot, Chen, Baveye, Xiao & Sjöberg 2018, "The MediaEval 2018 Emotional Impact of
    Movies Task". The films 54 to 65 are the official test part and stay in the split test. Raises UserError
    for a folder in another layout, and for one without the test part, or with a piece of it only.
    """
    tables = _numbered(by_stem(source.folder, (".txt",)), r"MEDIAEVAL18_(\d\d)_Valence-Arousal")
    films = _numbered(by_stem(source.folder, VIDEO_SUFFIXES), r"MEDIAEVAL18_(\d\d)")
    if missing := [number for number in _TEST_FILMS if number not in tables]:
        names = ", ".join(f"{number:02d}" for number in missing)
        raise UserError(
            f"{source.folder} lacks annotations of the official test part (films {names}); "
            f"--from takes {_LAYOUT}"
        )
    if not any(number in tables for number in _TRAIN_FILMS):
        raise UserError(f"{source.folder} lacks the part for training; --from takes {_LAYOUT}")
    if unknown := sorted(set(tables) - {*_TRAIN_FILMS, *_TEST_FILMS}):
        raise UserError(f"{source.folder / tables[unknown[0]]}: the set has no film {unknown[0]}")
    numbers = sorted(tables)
    items = [
        _item(number, tables[number], films, source) for number in track_reading(numbers, "liris-accede")
    ]
    others = [item.work_id for number, item in zip(numbers, items, strict=True) if number in _TRAIN_FILMS]
    fold_of = dict(zip(others, assign_folds(others), strict=True))
    return items, [fold_of.get(item.work_id, OFFICIAL_TEST) for item in items]


def _numbered(files: Mapping[str, Sequence[str]], pattern: str) -> dict[int, str]:
    named = ((re.fullmatch(pattern, stem), names) for stem, names in files.items())
    return {int(match[1]): names[0] for match, names in named if match}


def _item(number: int, table: str, films: Mapping[int, str], source: Source) -> Item:
    path = source.folder / table
    rows = read_table(path, _COLUMNS, _LAYOUT)
    times_s = [row.number("Time", 0, np.inf) for row in rows]
    if len(rows) < 2 or not np.allclose(np.diff(times_s), 1):
        raise UserError(f"{path}: the values must be one second apart")
    if number not in films:
        raise UserError(f"{source.folder} lacks the film of {path.name}, MEDIAEVAL18_{number:02d}.mp4")
    film, sha256 = source.medium(films[number], f"{path}")
    valence, arousal = (rounded(row.number(name, -1, 1) for row in rows) for name in ("Valence", "Arousal"))
    item = Item(
        id=f"liris-accede-{number:02d}",
        video=film,
        pairing="synchronised",
        task="emotion",
        modality="audio-visual",
        construct="induced",
        split="train",
        work_id=f"liris-accede-{number:02d}",
        creator_id=f"liris-accede:{number:02d}",
        source="liris-accede",
        license="LicenseRef-LIRIS-ACCEDE-EULA",
        sha256=sha256,
    )
    return with_course(item, Course(valence, arousal, 1.0, times_s[0]))  # the tables name no raters
