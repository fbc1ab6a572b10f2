"""Labels over time, read from a CSV file or from a data manifest whose items have series.

A CSV file has the column ``time_s``, and ``valence``, ``arousal`` or both in [-1, 1]. ``work`` names the work
of a row. Raters stand in a column ``rater`` (one row for each of them and each time), or have columns of
their own, such as ``valence_rater1`` and ``arousal_rater1``. Where only raters are given, their mean is the
label. Empty cells and other columns are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from vaemotion.contract.errors import UserError
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import read_manifests
from vaemotion.data.published.label_table import LabelRow
from vaemotion.evaluation.benchmark.rows import DIMENSIONS
from vaemotion.evaluation.timeline.series import Series, mean_series

_RATED_BY = re.compile(rf"({'|'.join(DIMENSIONS)})_(rater.+)")
_ANY_TIME_S = 1e9


@dataclass(frozen=True)
class WorkLabels:
    """The labels of one work.

    ``names``: what a timeline of it may be called; empty for a file of one work without a name. ``labels``
    and ``raters``: series by dimension, and by dimension and rater. ``construct`` and ``path``: what the
    labels are about, "" where the file does not say it.
    """

    work: str
    names: frozenset[str]
    labels: dict[str, Series]
    raters: dict[str, dict[str, Series]] = field(default_factory=dict[str, dict[str, Series]])
    construct: str = ""
    path: str = ""


def read_labels(file: Path) -> list[WorkLabels]:
    """Read a CSV file or a data manifest. Raises UserError for a file without labels over time."""
    try:
        with file.open("rb") as opened:
            is_manifest = opened.read(1 << 12).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); give a CSV file or a manifest") from error
    return _of_manifest(file) if is_manifest else _of_table(file)


def _of_manifest(file: Path) -> list[WorkLabels]:
    items = [placed.item for placed in read_manifests([file], None)]
    found = [_of_item(item) for item in items if item.series_rate_hz is not None]
    if not found:
        raise UserError(
            f"{file} has no labels over time; give items with valence_series or arousal_series, or a CSV file"
        )
    return found


def _of_item(item: Item) -> WorkLabels:
    media = [PurePosixPath(path) for path in item.media]
    names = {item.work_id, item.id, *(path.name for path in media), *(path.stem for path in media)}
    first_s = (item.t0 or 0.0) + item.series_start_s - item.reaction_lag_s
    labels: dict[str, Series] = {}
    for dimension in DIMENSIONS:
        values = getattr(item, f"{dimension}_series")
        if values is not None:
            assert item.series_rate_hz is not None, "the manifest's rules: a series comes with its rate"
            times_s = first_s + np.arange(len(values)) / item.series_rate_hz
            labels[dimension] = Series(times_s, np.array(values, np.float64))
    return WorkLabels(item.work_id, frozenset(names), labels, {}, item.construct or "", item.modality)


def _of_table(file: Path) -> list[WorkLabels]:
    rows = _rows(file)
    columns = list(rows[0].cells)
    points: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}  # work → dimension, rater
    times_s: dict[tuple[str, str], list[tuple[float, str]]] = {}  # work, rater → time, where
    for row in rows:
        work = row.text("work") if "work" in columns else ""
        rater = row.text("rater") if "rater" in columns else ""
        time_s = row.number("time_s", -_ANY_TIME_S, _ANY_TIME_S)
        times_s.setdefault((work, rater), []).append((time_s, row.where))
        for column in columns:
            series = _series_of(column, rater)
            if series is not None and row.cells[column].strip().lower() not in ("", "nan"):
                points.setdefault(work, {}).setdefault(series, []).append((time_s, row.number(column, -1, 1)))
    _refuse_disorder(times_s.values())
    if not any(_series_of(column, "") for column in columns):
        raise UserError(
            f"{file} has the columns {', '.join(columns)}; it needs time_s, and valence or arousal"
        )
    if not points:
        raise UserError(f"{file} has no value of {' or '.join(DIMENSIONS)}; fill its cells")
    return [_of_points(work, by_series) for work, by_series in points.items()]


def _series_of(column: str, rater: str) -> tuple[str, str] | None:
    """Return the dimension and the rater ("" for the label itself) of a column; None for another column."""
    if column in DIMENSIONS:
        return column, rater
    rated = _RATED_BY.fullmatch(column)
    return (rated[1], rated[2]) if rated else None


def _of_points(work: str, points: dict[tuple[str, str], list[tuple[float, float]]]) -> WorkLabels:
    labels: dict[str, Series] = {}
    raters: dict[str, dict[str, Series]] = {}
    for (dimension, rater), values in points.items():
        if rater:
            raters.setdefault(dimension, {})[rater] = Series.of(values)
        else:
            labels[dimension] = Series.of(values)
    for dimension, rated in raters.items():
        labels.setdefault(dimension, mean_series(list(rated.values())))
    return WorkLabels(work, frozenset({work, Path(work).stem} - {""}), labels, raters)


def _refuse_disorder(timed: Iterable[Sequence[tuple[float, str]]]) -> None:
    """Raise UserError where a time does not follow the one before."""
    for times in timed:
        for (before_s, _), (time_s, where) in pairwise(times):
            if time_s <= before_s:
                raise UserError(
                    f"{where}: time_s must ascend within a work and a rater, got {time_s:g} after "
                    f"{before_s:g}; sort the rows, or name works and raters in the columns work and rater"
                )


def _rows(file: Path) -> list[LabelRow]:
    """Read the rows of a CSV file with the column time_s; each has a cell for each column."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened, strict=True)
            columns = [name.strip() for name in next(lines, [])]
            if "time_s" not in columns:
                raise UserError(
                    f"{file} has no column time_s in its first line; labels are a CSV file with the columns "
                    "time_s, valence, arousal, or a data manifest"
                )
            if len(set(columns)) < len(columns):
                raise UserError(f"{file} has a column twice in its first line; give each another name")
            rows: list[LabelRow] = []
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    where = f"{file} line {lines.line_num}"
                    if len(cells) != len(columns):
                        raise UserError(f"{where}: {len(cells)} cells, but the first line has {len(columns)}")
                    rows.append(LabelRow(where, dict(zip(columns, cells, strict=True))))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a table: byte {error.start} is not UTF-8 text") from None
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as CSV: {error}") from None
    if not rows:
        raise UserError(f"{file} has no rows below its first line")
    return rows
