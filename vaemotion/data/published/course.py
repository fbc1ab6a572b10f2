"""Course of valence and arousal over time, for the adapters of sets that were rated so.

In: the ratings of single people, or means. Out: a `Course`, which an item carries as its series. None of the
sets documents how late its raters reacted, so that no item gets a reaction lag.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vaemotion.data.manifest.item import Item

# What adapters count as left out.
NEVER_MOVED = "ratings over time whose rater never moved"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")


@dataclass(frozen=True)
class Course:
    """Valence and arousal over time, in [-1, 1], of ``n_raters`` people (None: not known)."""

    valence: tuple[float, ...]
    arousal: tuple[float, ...]
    rate_hz: float
    start_s: float
    n_raters: int | None = None


def with_course(item: Item, course: Course | None) -> Item:
    """Return the item with its series and its number of raters; without a course, the item itself."""
    if course is None:
        return item
    return replace(
        item,
        valence_series=course.valence,
        arousal_series=course.arousal,
        series_rate_hz=course.rate_hz,
        series_start_s=course.start_s,
        n_raters=course.n_raters,
    )


def rounded(values: Iterable[float]) -> tuple[float, ...]:
    """Round labels to six decimals."""
    return tuple(round(float(value), 6) for value in values)
