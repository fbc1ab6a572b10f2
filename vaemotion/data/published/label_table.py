"""Label tables of data sets: CSV or tab-separated files whose cells are checked when they are read.

In: a file. Out: `LabelRow`s, or one UserError that names the file, the line, the expected and the
actual value.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaemotion.contract.errors import UserError

_TOO_MANY = "\0"  # name of the cells beyond the last column; a column may have no name


@dataclass(frozen=True)
class LabelRow:
    """One row of a label table. ``where``: the file and the line, the start of error messages."""

    where: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a text cell. Raises UserError for an empty one."""
        if not (value := self.cells[column].strip()):
            raise UserError(f"{self.where}: {column} is empty")
        return value

    def one_of(self, column: str, expected: Sequence[str]) -> str:
        """Return a cell that is one of the expected texts. Raises UserError for anything else."""
        value = self.cells[column].strip()
        if value not in expected:
            raise UserError(f"{self.where}: {column} must be one of {', '.join(expected)}, got {value!r}")
        return value

    def number(self, column: str, low: float, high: float) -> float:
        """Return a number in [low, high]. Raises UserError for anything else."""
        value = _number(self.cells[column])
        if value is None or not low <= value <= high:
            got = self.cells[column]
            raise UserError(f"{self.where}: {column} must be a number in [{low:g}, {high:g}], got {got!r}")
        return value

    def count(self, column: str) -> int:
        """Return a whole number, at least 0. Raises UserError for anything else."""
        value = self.cells[column].strip()
        if not (value.isascii() and value.isdecimal() and len(value) < 10):
            raise UserError(f"{self.where}: {column} must be a whole number, at least 0, got {value!r}")
        return int(value)


def refuse_other_columns(row: LabelRow, known: Iterable[str]) -> None:
    """Refuse a table that has columns besides ``known``. Raises UserError that names the first of them."""
    if unknown := [name for name in row.cells if name not in set(known)]:
        raise UserError(f"{row.where}: the table has a column {unknown[0]!r}, which this set does not have")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_table(path: Path, columns: Sequence[str], layout: str) -> list[LabelRow]:
    """Read the rows of a CSV file that has at least ``columns``, whose names are read without outer spaces.

    A file named ``.tsv`` or ``.txt`` has tabs between its cells, and no quotes. ``layout``: a description of
    the folder that ``--from`` takes, for error messages. Raises UserError for a file that is missing, empty,
    not UTF-8 text, not CSV, or lacks a column or a cell.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; --from takes {layout}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _rows(path, _reader(path, file), columns)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a table: byte {error.start} is not UTF-8 text") from None
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows; --from takes {layout}")
    return rows


def _reader(path: Path, file: Iterable[str]) -> csv.DictReader[str]:
    if path.suffix in (".tsv", ".txt"):
        reader = csv.DictReader(file, restkey=_TOO_MANY, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(file, restkey=_TOO_MANY, strict=True)
    if reader.fieldnames is not None:
        reader.fieldnames = [name.strip() for name in reader.fieldnames]
    return reader


def _rows(path: Path, reader: csv.DictReader[str], columns: Sequence[str]) -> list[LabelRow]:
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: expected {', '.join(columns)}")
    rows: list[LabelRow] = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if _TOO_MANY in cells or None in cells.values():
            raise UserError(f"{where}: expected {len(reader.fieldnames or ())} cells, as in the first line")
        rows.append(LabelRow(where, cells))
    return rows
