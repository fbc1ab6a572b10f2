"""``vaemotion evaluate timeline``: a run's readings against labels over time.

In: timelines of ``vaemotion run``, one of each work, and the works' labels. Out: ``report.md``,
``results.json`` and plots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.terminal import tell
from vaemotion.evaluation.benchmark.rows import DIMENSIONS
from vaemotion.evaluation.timeline.labels import WorkLabels, read_labels
from vaemotion.evaluation.timeline.report import TimelineReport, markdown, write_timeline_report
from vaemotion.evaluation.timeline.results import (
    FEWEST_POINTS,
    Settings,
    Track,
    WorkPair,
    timeline_results,
)
from vaemotion.evaluation.timeline.series import Series


class RunStart(Protocol):
    """The first line of a timeline."""

    @property
    def source(self) -> str: ...
    @property
    def bundle(self) -> str: ...
    @property
    def bundle_sha256(self) -> str: ...


class RunReading(Protocol):
    """A reading of a timeline; see ``runtime.messages.Reading``."""

    @property
    def time_s(self) -> float: ...
    @property
    def path(self) -> str: ...
    @property
    def valence(self) -> float: ...
    @property
    def arousal(self) -> float: ...
    @property
    def valence_sd(self) -> float: ...
    @property
    def arousal_sd(self) -> float: ...
    @property
    def valence_interval(self) -> float | None: ...
    @property
    def arousal_interval(self) -> float | None: ...


class RunTimeline(Protocol):
    """A timeline that was read; see ``runtime.commands.timeline.read.Timeline``."""

    @property
    def start(self) -> RunStart | None: ...
    @property
    def readings(self) -> Sequence[RunReading]: ...


@dataclass(frozen=True)
class _Recorded:
    """A timeline: its file, what its work may be called, and its readings. ``bundle``: name and SHA-256."""

    file: Path
    names: frozenset[str]
    track: Track
    bundle: str


def run_timeline(
    timelines: Sequence[Path],
    labels: Path,
    out: Path,
    settings: Settings,
    read_timeline: Callable[[Path], RunTimeline],
) -> None:
    """Compare timelines with labels, write the report to ``out`` and print it.

    A timeline belongs to the work that has its source's name. Raises UserError for files that cannot be read,
    and where a timeline has no labels or no common time with them.
    """
    if len({file.resolve() for file in timelines}) < len(timelines):
        raise UsageError(f"each timeline must be given once, got {', '.join(map(str, timelines))}")
    labeled = read_labels(labels)
    if settings.reaction_lag_s and any(work.path for work in labeled):
        raise UsageError(
            "--reaction-lag is for CSV files; the items of a manifest give their own in reaction_lag_s"
        )
    recorded = [_recorded(file, read_timeline(file)) for file in timelines]
    pairs = _pairs(recorded, labeled, labels)
    _refuse_apart(pairs, recorded, labels, settings)
    matched = {pair.labels.work for pair in pairs}
    report = TimelineReport(
        results=timeline_results(pairs, settings),
        pairs=tuple(pairs),
        without_timeline=tuple(sorted({work.work for work in labeled} - matched)),
        bundles=tuple(sorted({each.bundle for each in recorded})),
        labels=labels.name,
        labels_sha256=sha256_of(labels),
        settings=settings,
    )
    write_timeline_report(report, out)
    tell(markdown(report))
    tell(f"\nwritten to {out}")


def _recorded(file: Path, timeline: RunTimeline) -> _Recorded:
    readings, start = timeline.readings, timeline.start
    names = {file.name, file.stem} | ({start.source, Path(start.source).stem} if start else set())
    calibrated = all(
        getattr(reading, f"{name}_interval") is not None for reading in readings for name in DIMENSIONS
    )
    band = "interval" if calibrated else "sd"
    counts = {path: sum(reading.path == path for reading in readings) for path in PATHS}
    path = max(PATHS, key=lambda name: counts[name])

    def series(suffix: str) -> dict[str, Series]:
        return {
            name: Series.of([(reading.time_s, getattr(reading, name + suffix)) for reading in readings])
            for name in DIMENSIONS
        }

    track = Track(
        work=Path(start.source).name if start else file.name,
        readings=series(""),
        bands=series(f"_{band}"),
        calibrated=calibrated,
        path=path,
        path_share=counts[path] / len(readings),
    )
    bundle = f"{start.bundle}, sha256 {start.bundle_sha256}" if start else "not known"
    return _Recorded(file, frozenset(names - {""}), track, bundle)


def _pairs(recorded: Sequence[_Recorded], labeled: Sequence[WorkLabels], labels: Path) -> list[WorkPair]:
    """Pair each timeline with the labels of its work. Raises UserError where there is not exactly one."""
    unnamed = [work for work in labeled if not work.names]
    if unnamed and len(recorded) > 1:
        raise UserError(
            f"{labels} has no column work, which is needed to tell {len(recorded)} timelines apart; add it "
            "with the name of each timeline's source"
        )
    if unnamed:
        return [WorkPair(recorded[0].track, unnamed[0])]
    pairs: list[WorkPair] = []
    owner: dict[str, Path] = {}
    for each in recorded:
        work = _labels_of(each, labeled, labels)
        if (first := owner.setdefault(work.work, each.file)) is not each.file:
            raise UserError(f"{first} and {each.file} are both of the work {work.work}; give one of them")
        pairs.append(WorkPair(each.track, work))
    return pairs


def _labels_of(recorded: _Recorded, labeled: Sequence[WorkLabels], labels: Path) -> WorkLabels:
    named = [work for work in labeled if work.names & recorded.names]
    if not named:
        raise UserError(
            f"{labels} has no labels for {recorded.file} ({recorded.track.work}); it has them for "
            f"{_some(work.work for work in labeled)}"
        )
    # A work may have labels for each path, and of what it expresses, as a reading, and of what it induces.
    path = recorded.track.path
    best = max((work.path in ("", path), work.construct in ("", "expressed")) for work in named)
    found = [w for w in named if (w.path in ("", path), w.construct in ("", "expressed")) == best]
    if len(found) > 1:
        raise UserError(
            f"{labels} has {len(found)} series of labels for {recorded.file} on the path {path}; leave one"
        )
    return found[0]


def _refuse_apart(
    pairs: Sequence[WorkPair], recorded: Sequence[_Recorded], labels: Path, settings: Settings
) -> None:
    for pair, each in zip(pairs, recorded, strict=True):
        counts = [len(pair.joined(dimension, settings).time_s) for dimension in pair.labels.labels]
        if max(counts) < FEWEST_POINTS:
            readings, labeled = pair.track.readings["valence"], next(iter(pair.labels.labels.values()))
            raise UserError(
                f"{each.file} has readings from {_span(readings)} and {labels} has labels from "
                f"{_span(labeled)}: {max(counts)} common times every {settings.step_s:g} s, but "
                f"{FEWEST_POINTS} are needed; give labels of the same time, or a smaller --step"
            )


def _span(series: Series) -> str:
    return f"{series.time_s[0]:.1f} to {series.time_s[-1]:.1f} s"


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = sorted(set(names))
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
