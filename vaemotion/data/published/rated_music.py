"""Adapters of rated music: DEAM and PMEmo, each with labels of the whole excerpt and over time.

In: the set's folder. Out: its items and their folds, from which `build` makes a manifest.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaemotion.contract.errors import UserError
from vaemotion.data.manifest.item import Item
from vaemotion.data.published.adapter import (
    ItemsAndFolds,
    Source,
    assign_folds,
    one_of_folders,
    track_reading,
)
from vaemotion.data.published.course import NEVER_MOVED, Course, rounded, with_course
from vaemotion.data.published.label_table import LabelRow, read_table, refuse_other_columns

_DEAM_LAYOUT = "the folder of DEAM with annotations/, metadata/ and MEMD_audio/"
_DEAM_STATIC = (
    "static_annotations_averaged_songs_1_2000.csv",
    "static_annotations_averaged_songs_2000_2058.csv",
)
_DEAM_STATIC_COLUMNS = ("song_id", "valence_mean", "valence_std", "arousal_mean", "arousal_std")
_DEAM_METADATA = ("metadata_2013.csv", "metadata_2014.csv", "metadata_2015.csv")
_DEAM_RATE_HZ = 2.0
_DEAM_OF_EMOMUSIC = 1000  # the song ids up to here are those of EmoMusic ("1000 songs")

_PMEMO_LAYOUT = "the folder PMEmo2019 with annotations/, chorus/ and metadata.csv"
_PMEMO_VALUES = ("Valence(mean)", "Arousal(mean)")
_PMEMO_SPREADS = ("Valence(std)", "Arousal(std)")
_PMEMO_RATE_HZ = 2.0


def deam(source: Source) -> ItemsAndFolds:
    """Read DEAM: excerpts of songs, and some whole ones, with the valence and arousal that they express.

    Source: Aljanaki, Yang & Soleymani 2017, "Developing a benchmark for emotional analysis of music", PLoS
    ONE 12:e0173392. Ratings of the whole excerpt from 1 to 9, over time in [-1, 1] with 2 values a second
    from 15 s on. Where the ratings of single people are there, the series are made from them, without those
    who never moved; else the published means are taken. The set contains EmoMusic: the works of the shared
    songs are named ``emomusic-ID``. Raises UserError for a folder in another layout.
    """
    folder = source.folder
    annotations = folder / one_of_folders(
        folder, ("annotations", "DEAM_Annotations/annotations"), _DEAM_LAYOUT
    )
    sounds = one_of_folders(folder, ("MEMD_audio", "DEAM_audio/MEMD_audio"), _DEAM_LAYOUT)
    averaged = annotations / "annotations averaged per song"
    rows = [
        row
        for name in _DEAM_STATIC
        for row in read_table(averaged / "song_level" / name, _DEAM_STATIC_COLUMNS, _DEAM_LAYOUT)
    ]
    artists = _deam_artists(folder / "metadata")
    courses = _deam_courses(annotations, source)
    items: list[Item] = []
    for row in track_reading(rows, "deam"):
        song = row.count("song_id")
        if song not in artists:
            raise UserError(f"{row.where}: song {song} is in none of {', '.join(_DEAM_METADATA)}")
        medium = source.medium(f"{sounds}/{song}.mp3", row.where)
        items.append(_deam_item(row, song, artists[song], courses.get(song), medium))
    return items, assign_folds([item.creator_id for item in items])


def _deam_artists(folder: Path) -> dict[int, str]:
    """Read each song's artist. The tables differ in their columns and have rows of different lengths."""
    artists: dict[int, str] = {}
    for name in _DEAM_METADATA:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} does not exist; --from takes {_DEAM_LAYOUT}")
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = [[cell.strip().strip('"').strip() for cell in row] for row in csv.reader(file)]
        header = [cell.lower() for cell in rows[0]] if rows else []
        if "artist" not in header:
            raise UserError(f"{path} lacks the column Artist")
        place = header.index("artist")
        artists.update(
            {int(row[0]): row[place] for row in rows[1:] if len(row) > place and row[0].isdecimal()}
        )
    return artists


def _deam_courses(annotations: Path, source: Source) -> dict[int, Course]:
    """Return the songs' series, from the ratings of single people where they are there."""
    per_rater = annotations / "annotations per each rater" / "dynamic (per second annotations)"
    if not per_rater.is_dir():
        dynamic = annotations / "annotations averaged per song" / "dynamic (per second annotations)"
        means = {name: _deam_means(dynamic / f"{name}.csv") for name in ("valence", "arousal")}
        return {
            song: Course(valence, means["arousal"][song][1], _DEAM_RATE_HZ, start_s)
            for song, (start_s, valence) in means["valence"].items()
            if song in means["arousal"]
        }
    courses: dict[int, Course] = {}
    for path in sorted((per_rater / "valence").glob("*.csv")):
        valence, arousal = (
            _deam_mean(per_rater / name / path.name, source) for name in ("valence", "arousal")
        )
        if path.stem.isdecimal() and valence is not None and arousal is not None:
            courses[int(path.stem)] = _aligned(valence, arousal)
    return courses


@dataclass(frozen=True)
class _Mean:
    values: tuple[float, ...]
    start_s: float
    n_raters: int


def _aligned(valence: _Mean, arousal: _Mean) -> Course:
    length = min(len(valence.values), len(arousal.values))
    raters = min(valence.n_raters, arousal.n_raters)
    return Course(valence.values[:length], arousal.values[:length], _DEAM_RATE_HZ, valence.start_s, raters)


def _deam_means(path: Path) -> dict[int, tuple[float, tuple[float, ...]]]:
    """Read a table of means: the first value's time and the values of each song."""
    rows = read_table(path, ("song_id",), _DEAM_LAYOUT)
    columns = _deam_columns(rows[0])
    refuse_other_columns(rows[0], ["song_id", *(name for _, name in columns)])
    found: dict[int, tuple[float, tuple[float, ...]]] = {}
    for row in rows:
        values = _deam_values(row, columns)
        length = int(np.argmax(np.isnan(values))) if np.isnan(values).any() else len(values)
        if length >= 2:
            found[row.count("song_id")] = (columns[0][0], rounded(values[:length]))
    return found


def _deam_mean(path: Path, source: Source) -> _Mean | None:
    """Average the ratings of one song, a row a rater; None where nobody moved.

    A time counts while at least half of the raters rated it.
    """
    rows = read_table(path, (), _DEAM_LAYOUT)
    columns = _deam_columns(rows[0])
    ratings = np.array([_deam_values(row, columns) for row in rows])  # (raters, times)
    moved = np.nanmax(ratings, axis=1, initial=-np.inf) > np.nanmin(ratings, axis=1, initial=np.inf)
    source.left_out[NEVER_MOVED] += int((~moved).sum())
    ratings = ratings[moved]
    rated = ~np.isnan(ratings)
    enough = rated.sum(axis=0) * 2 >= len(ratings)
    length = int(np.argmin(enough)) if not enough.all() else len(columns)
    if not len(ratings) or length < 2:
        return None
    return _Mean(rounded(np.nanmean(ratings[:, :length], axis=0)), columns[0][0], len(ratings))


def _deam_columns(row: LabelRow) -> list[tuple[float, str]]:
    """Return the times in seconds and the names of the columns ``sample_15000ms`` and so on."""
    columns = [
        (int(named[1]) / 1000, name) for name in row.cells if (named := re.fullmatch(r"sample_(\d+)ms", name))
    ]
    steps_s = np.diff([time_s for time_s, _ in columns])
    if len(columns) < 2 or not np.allclose(steps_s, 1 / _DEAM_RATE_HZ):
        raise UserError(f"{row.where}: expected columns sample_15000ms, sample_15500ms and so on")
    return columns


def _deam_values(row: LabelRow, columns: Sequence[tuple[float, str]]) -> list[float]:
    return [row.number(name, -1, 1) if row.cells[name].strip() else np.nan for _, name in columns]


def _deam_item(row: LabelRow, song: int, artist: str, course: Course | None, medium: tuple[str, str]) -> Item:
    item = Item(
        id=f"deam-{song}",
        audio=medium[0],
        pairing="none",
        task="emotion",
        audible=True,
        modality="audio",
        valence=_of_nine(row, "valence_mean"),
        arousal=_of_nine(row, "arousal_mean"),
        valence_sd=round(row.number("valence_std", 0, 8) / 4, 6),
        arousal_sd=round(row.number("arousal_std", 0, 8) / 4, 6),
        construct="expressed",
        split="train",
        work_id=f"{'emomusic' if song <= _DEAM_OF_EMOMUSIC else 'deam'}-{song}",
        creator_id=f"deam:{artist or song}",
        source="deam",
        license="LicenseRef-CC-BY-NC",  # its version is not given
        sha256=medium[1],
    )
    return with_course(item, course)


def _of_nine(row: LabelRow, column: str) -> float:
    return round((row.number(column, 1, 9) - 5) / 4, 6)


def pmemo(source: Source) -> ItemsAndFolds:
    """Read PMEmo: choruses of pop songs with the valence and arousal that they induce.

    Source: Zhang et al. 2018, "The PMEmo Dataset for Music Emotion Recognition", ICMR; the release of 2019.
    Labels of the whole chorus, and every half second from 15 s on, from 0 to 1. Raises UserError for a
    folder in another layout.
    """
    folder = source.folder / "annotations"
    means = read_table(folder / "static_annotations.csv", ("musicId", *_PMEMO_VALUES), _PMEMO_LAYOUT)
    spreads = {
        row.count("musicId"): row
        for row in read_table(
            folder / "static_annotations_std.csv", ("musicId", *_PMEMO_SPREADS), _PMEMO_LAYOUT
        )
    }
    songs = {
        row.count("musicId"): row
        for row in read_table(source.folder / "metadata.csv", ("musicId", "artist"), _PMEMO_LAYOUT)
    }
    courses = _pmemo_courses(folder / "dynamic_annotations.csv")
    items: list[Item] = []
    for row in track_reading(means, "pmemo"):
        number = row.count("musicId")
        for name, table in (("static_annotations_std.csv", spreads), ("metadata.csv", songs)):
            if number not in table:
                raise UserError(f"{row.where}: musicId {number} is not in {name}")
        medium = source.medium(f"chorus/{number}.mp3", row.where)
        items.append(_pmemo_item(row, spreads[number], songs[number], courses.get(number), medium))
    return items, assign_folds([item.creator_id for item in items])


def _pmemo_courses(path: Path) -> dict[int, Course]:
    rows = read_table(path, ("musicId", "frameTime", *_PMEMO_VALUES), _PMEMO_LAYOUT)
    points: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for row in rows:
        point = row.number("frameTime", 0, np.inf), *(_of_one(row, name) for name in _PMEMO_VALUES)
        points[row.count("musicId")].append(point)
    courses: dict[int, Course] = {}
    for number, found in points.items():
        times_s, valence, arousal = zip(*sorted(found), strict=True)
        if not np.allclose(np.diff(times_s), 1 / _PMEMO_RATE_HZ):
            raise UserError(f"{path}: the values of musicId {number} must be 0.5 s apart")
        if len(times_s) >= 2:
            courses[number] = Course(valence, arousal, _PMEMO_RATE_HZ, times_s[0])
    return courses


def _pmemo_item(
    row: LabelRow, spread: LabelRow, song: LabelRow, course: Course | None, medium: tuple[str, str]
) -> Item:
    number = row.count("musicId")
    item = Item(
        id=f"pmemo-{number}",
        audio=medium[0],
        pairing="none",
        task="emotion",
        audible=True,
        modality="audio",
        valence=_of_one(row, "Valence(mean)"),
        arousal=_of_one(row, "Arousal(mean)"),
        valence_sd=round(2 * spread.number("Valence(std)", 0, 1), 6),
        arousal_sd=round(2 * spread.number("Arousal(std)", 0, 1), 6),
        construct="induced",
        # No n_raters: the release gives means only.
        split="train",
        work_id=f"pmemo-{number}",
        creator_id=f"pmemo:{song.text('artist')}",
        source="pmemo",
        license="NOASSERTION",  # MIT is the license of the repository's code; the songs have owners
        sha256=medium[1],
    )
    return with_course(item, course)


def _of_one(row: LabelRow, column: str) -> float:
    return round(2 * row.number(column, 0, 1) - 1, 6)
