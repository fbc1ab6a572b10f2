"""The comparison of timelines with labels as files: ``report.md``, ``results.json`` and plots (PNG)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vaemotion.contract.files import write_whole
from vaemotion.contract.words import counted, duration_words, markdown_table
from vaemotion.evaluation.benchmark.rows import BLOCK_S, FEWEST_BLOCKS
from vaemotion.evaluation.timeline.results import Settings, TimelineReport, TimelineResult
from vaemotion.evaluation.timeline.series import LONGEST_GAP_S


def write_timeline_report(report: TimelineReport, out: Path) -> None:
    """Write all files of a report into ``out``.

    Without matplotlib, it writes no plots and prints how to install it.
    """
    write_whole(out / "results.json", json.dumps(summary(report), indent=2, allow_nan=False) + "\n")
    write_whole(out / "report.md", markdown(report) + "\n")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed (pip install 'vaemotion[plot]')", file=sys.stderr)
        return
    from vaemotion.evaluation.timeline.plots import write_plots

    write_plots(report, out)


def summary(report: TimelineReport) -> dict[str, Any]:
    """Return the results as plain values for JSON."""
    return {
        "results": [asdict(result) for result in report.results],
        "without_timeline": report.without_timeline,
        "bundles": report.bundles,
        "labels": report.labels,
        "labels_sha256": report.labels_sha256,
        "step_s": report.settings.step_s,
        "most_lag_s": report.settings.most_lag_s,
        "reaction_lag_s": report.settings.reaction_lag_s,
        "bootstrap": {**asdict(report.settings.bootstrap), "coverage": 0.95},
    }


def markdown(report: TimelineReport) -> str:
    """Return the results as Markdown tables."""
    settings = report.settings
    parts = ["## Valence and arousal over time\n\n" + _agreement_table(report.results)]
    parts.append("## Lag\n\n" + _lag_table(report.results) + "\n\n" + _lag_words(settings))
    parts.append("## Raters\n\n" + _rater_table(report.results) + "\n\n" + _rater_words(report))
    parts.append("\n".join(f"- {line}" for line in _method(report)))
    return "\n\n".join(parts)


def _named(result: TimelineResult) -> tuple[str, str, str]:
    return (
        f"{result.works} works, pooled" if result.work is None else result.work,
        result.dimension,
        result.path,
    )


def _agreement_table(results: Sequence[TimelineResult]) -> str:
    """Tabulate the model and the mean predictor at lag 0."""
    rows: list[tuple[object, ...]] = []
    for r in results:
        rows.append((*_named(r), r.points, duration_words(r.shared_s), str(r.ccc), str(r.pcc), str(r.rmse)))
        constant = ("0.000", "0.000", f"{r.mean_rmse:.3f}")
        work, dimension, _ = _named(r)
        rows.append((work, dimension, "mean predictor", r.points, duration_words(r.shared_s), *constant))
    return markdown_table(("work", "dimension", "path", "n", "common time", "CCC", "PCC", "RMSE"), rows)


def _lag_table(results: Sequence[TimelineResult]) -> str:
    rows = [
        (
            *_named(r),
            f"{r.ccc.value:.3f}",
            f"{r.best.lag_s:+.1f} s",
            r.best.points,
            f"{r.best.ccc:.3f}",
            f"{r.best.pcc:.3f}",
            f"{r.best.rmse:.3f}",
        )
        for r in results
    ]
    head = (
        "work",
        "dimension",
        "path",
        "CCC at lag 0",
        "best lag",
        "n",
        "CCC there",
        "PCC there",
        "RMSE there",
    )
    return markdown_table(head, rows)


def _lag_words(settings: Settings) -> str:
    return (
        f"The best lag is an oracle: of all lags within ±{settings.most_lag_s:g} s, the labels themselves "
        "choose the one with the highest CCC. A lag above 0: the labels come later than the readings. Lags "
        "that leave fewer than half of the points are not tried."
    )


def _rater_table(results: Sequence[TimelineResult]) -> str:
    rows = [
        (
            *_named(r),
            r.raters or "not known",
            "–" if r.ceiling_ccc is None else f"{r.ceiling_ccc:.3f}",
            f"{r.ccc.value:.3f}",
            "–" if r.coverage is None else f"{r.coverage:.1%}",
        )
        for r in results
    ]
    head = (
        "work",
        "dimension",
        "path",
        "raters",
        "CCC of a rater",
        "CCC of the model",
        "labels in 90 % interval",
    )
    return markdown_table(head, rows)


def _rater_words(report: TimelineReport) -> str:
    words = (
        "CCC of a rater: mean over the raters of the CCC of each with the mean of the others, at the same "
        "times. The model is compared with the mean of all raters, and may therefore be above a rater."
    )
    if any(result.coverage is None for result in report.results):
        words += " Without calibrated intervals in every reading the last column is empty."
    return words


def _method(report: TimelineReport) -> list[str]:
    settings, bootstrap = report.settings, report.settings.bootstrap
    lines = [
        f"Readings and labels are interpolated linearly every {settings.step_s:g} s, where both have values; "
        f"gaps longer than {LONGEST_GAP_S:g} s (1.5 steps, where a file's own step is longer) are left out.",
        f"Brackets: 95 % bootstrap intervals, {bootstrap.resamples} resamples, seed {bootstrap.seed}. Pooled "
        f"figures are resampled over works. Those of one work are resampled over blocks of {BLOCK_S:g} s, or "
        f"of an {FEWEST_BLOCKS}th of a short work; such an interval says nothing about other works.",
        f"Labels: {report.labels}, sha256 {report.labels_sha256}. Bundle: {'; '.join(report.bundles)}.",
    ]
    if settings.reaction_lag_s:
        lines.append(f"Labels were moved {settings.reaction_lag_s:g} s to the front beforehand.")
    if any(result.construct not in ("", "expressed") for result in report.results):
        lines.append("Some labels are of induced emotion, but a reading is of the expressed one.")
    mixed = [pair.track for pair in report.pairs if pair.track.path_share < 1]
    lines += [
        f"{track.work}: {track.path_share:.1%} of the readings have the path {track.path}." for track in mixed
    ]
    if report.without_timeline:
        lines.append(f"{counted(len(report.without_timeline), 'labeled work')} without a timeline left out.")
    return lines
