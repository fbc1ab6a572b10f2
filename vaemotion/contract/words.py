"""Texts for people: durations, counts, times, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence


def duration_words(duration_s: float) -> str:
    """Return a duration in words: "3.0 s", "2 min 05 s", "2 h 03 min"."""
    if duration_s < 59.95:
        return f"{duration_s:.1f} s"
    seconds = round(duration_s)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 reading", "70,561 readings"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def time_words(time_s: float, duration_s: float) -> str:
    """Return a time within a run of ``duration_s``.

    "2.4 s" in a run shorter than a minute, "1:05" in one shorter than an hour, "1:02:05" in a longer one.
    """
    if duration_s < 60:
        return f"{time_s:.1f} s"
    seconds = math.floor(time_s)
    if duration_s < 3600:
        return f"{seconds // 60}:{seconds % 60:02d}"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Collection[int] = ()) -> str:
    """Return a Markdown table without a final line break.

    ``right``: columns aligned right, by position. A ``|`` within a cell is escaped.
    """
    rule = "".join("---:|" if column in right else "---|" for column in range(len(head)))
    return "\n".join([_markdown_row(head), f"|{rule}", *map(_markdown_row, rows)])


def _markdown_row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
