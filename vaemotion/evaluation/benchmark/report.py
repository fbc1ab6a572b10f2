"""A benchmark's report as files: ``results.json``, ``results.md``, ``predictions.jsonl``, plots (PNG)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vaemotion.contract.files import write_whole
from vaemotion.contract.prediction import Affect
from vaemotion.contract.words import markdown_table
from vaemotion.evaluation.benchmark.affects import AffectResult, DistributionResult, GainResult
from vaemotion.evaluation.benchmark.choices import ChoiceResult, ListedResult, matched_option
from vaemotion.evaluation.benchmark.results import Report
from vaemotion.evaluation.benchmark.rows import BLOCK_S, DIMENSIONS, AffectRow, AnswerRow, asked_on
from vaemotion.evaluation.benchmark.series import ALL_WORKS, STEP_S, SeriesResult, WindowRow

MOST_WORKS = 20  # in the table over time; results.json has all


def write_report(report: Report, out: Path) -> None:
    """Write all files of a report into ``out``.

    Without matplotlib, it writes no plots and prints how to install it.
    """
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in _predictions(report))
    write_whole(out / "results.json", json.dumps(summary(report), indent=2, allow_nan=False) + "\n")
    write_whole(out / "results.md", markdown(report) + "\n")
    write_whole(out / "predictions.jsonl", "".join(lines))
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed (pip install 'vaemotion[plot]')", file=sys.stderr)
        return
    from vaemotion.evaluation.benchmark.plots import write_plots

    write_plots(report, out)


def summary(report: Report) -> dict[str, Any]:
    """Return the results as plain values for JSON, without the single rows."""
    return {
        "path": report.path,
        "choices": [asdict(result) for result in report.choices],
        "listed": [asdict(result) for result in report.listed],
        "affects": [asdict(result) for result in report.affects],
        "gains": [asdict(result) for result in report.gains],
        "distributions": [asdict(result) for result in report.distributions],
        "series": [asdict(result) for result in report.series],
        "left_out": report.left_out,
        "bootstrap": {**asdict(report.bootstrap), "coverage": 0.95, "over": "works"},
        "wall_s": round(report.wall_s, 3),
    }


def markdown(report: Report) -> str:
    """Return the results as Markdown tables."""
    parts: list[str] = []
    if report.path is not None:
        parts.append(f"Control run: every item was asked on the path {report.path!r} instead of its own.")
    if report.choices:
        title = "## Multiple choice (mean token log-probability, unlisted options)\n\n"
        parts.append(title + _choice_table(report.choices))
    if report.listed:
        parts.append(
            "## Multiple choice (listed and rotated options, greedy answer)\n\n"
            "An answer that is not one of the options counts as wrong. Circular: items that are right under "
            "every rotation (MMBench's CircularEval where there are as many rotations as options).\n\n"
            + _listed_table(report.listed)
        )
    if report.affects:
        parts.append("## Valence and arousal\n\n" + _affect_table(report.affects))
    if report.gains:
        parts.append(
            "## Both modalities against the better one\n\n"
            "CCC(audio-visual) − max(CCC(audio), CCC(visual)) on the same media, paired bootstrap.\n\n"
            + _gain_table(report.gains)
        )
    if report.distributions:
        parts.append(
            "## Emotion distributions (Jensen-Shannon divergence to the labels', bits: 0 is equal)\n\n"
            + _distribution_table(report.distributions)
        )
    if report.series:
        parts.append(
            f"## Valence and arousal over time (a window each {STEP_S:g} s)\n\n"
            + _series_table(report.series)
        )
    resamples, seed = report.bootstrap.resamples, report.bootstrap.seed
    parts.append(f"Brackets: 95 % bootstrap intervals over works, {resamples} resamples, seed {seed}.")
    if report.series:
        parts[-1] += f" Those of one work over time are over its blocks of at most {BLOCK_S:g} s."
    if report.left_out:
        listed = ", ".join(f"{count} × {reason}" for reason, count in report.left_out.items())
        parts.append(f"Left out: {listed}.")
    return "\n\n".join(parts)


def _choice_table(results: Sequence[ChoiceResult]) -> str:
    rows = [
        (
            r.source,
            r.task,
            asked_on(r.path, r.own_path),
            r.items,
            str(r.accuracy),
            f"{r.chance:.3f}",
            str(r.macro_f1),
            str(r.uar),
        )
        for r in results
    ]
    return markdown_table(("source", "task", "path", "items", "accuracy", "chance", "macro F1", "UAR"), rows)


def _listed_table(results: Sequence[ListedResult]) -> str:
    rows = [
        (
            r.source,
            r.task,
            asked_on(r.path, r.own_path),
            r.items,
            r.rotations,
            str(r.parse_rate),
            str(r.accuracy),
            f"{r.chance:.3f}",
            str(r.circular),
            f"{r.circular_chance:.3f}",
            str(r.macro_f1),
            str(r.uar),
        )
        for r in results
    ]
    figures = ("parse rate", "accuracy", "chance", "circular", "its chance", "macro F1", "UAR")
    return markdown_table(("source", "task", "path", "items", "rotations", *figures), rows)


def _affect_table(results: Sequence[AffectResult]) -> str:
    """Tabulate the model and the mean predictor on each path."""
    rows: list[tuple[object, ...]] = []
    for r in results:
        path = asked_on(r.path, r.own_path)
        named = (r.source, r.construct, r.dimension)
        figures = (str(r.ccc), str(r.pcc), str(r.rmse), f"{r.nll:.3f}", f"{r.mean_sd:.3f}")
        rows.append((*named, path, r.readings, *figures))
        constant = ("0.000", "0.000", f"{r.mean_rmse:.3f}", "", "")
        rows.append((*named, f"{path}, mean predictor", r.readings, *constant))
    figures = ("CCC", "PCC", "RMSE", "NLL", "mean sd")
    return markdown_table(("source", "construct", "dimension", "path", "n", *figures), rows)


def _gain_table(results: Sequence[GainResult]) -> str:
    rows = [
        (
            r.source,
            r.construct,
            r.dimension,
            r.media,
            f"{r.audio_visual_ccc:.3f}",
            f"{r.best_single_ccc:.3f} ({r.best_single})",
            str(r.gain),
            "yes" if r.gain.low > 0 else "no",
        )
        for r in results
    ]
    figures = ("audio-visual", "best single path", "difference", "lower bound above 0")
    return markdown_table(("source", "construct", "dimension", "n", *figures), rows)


def _distribution_table(results: Sequence[DistributionResult]) -> str:
    """Tabulate the model and two constant predictors on each path."""
    rows: list[tuple[object, ...]] = []
    for r in results:
        raters = "computed" if r.mean_raters is None else f"{r.mean_raters:.1f}"
        path = asked_on(r.path, r.own_path)
        named = (r.source, r.construct)
        rows.append((*named, path, r.readings, raters, str(r.jsd)))
        rows.append((*named, f"{path}, uniform predictor", r.readings, raters, str(r.uniform_jsd)))
        rows.append((*named, f"{path}, mean distribution", r.readings, raters, str(r.mean_jsd)))
    return markdown_table(("source", "construct", "path", "n", "raters a label", "JSD"), rows)


def _series_table(results: Sequence[SeriesResult]) -> str:
    """Tabulate the model and the mean predictor: all works together, and the first works one by one."""
    works = list(dict.fromkeys(r.work for r in results if r.work != ALL_WORKS))
    shown = {ALL_WORKS, *works[:MOST_WORKS]}
    rows: list[tuple[object, ...]] = []
    for r in results:
        if r.work in shown:
            path, work = asked_on(r.path, r.own_path), f"{r.works} works" if r.work == ALL_WORKS else r.work
            named = (r.source, r.construct, r.dimension)
            rows.append((*named, path, work, r.windows, str(r.ccc), str(r.pcc), str(r.rmse)))
            constant = ("0.000", "0.000", f"{r.mean_rmse:.3f}")
            rows.append((*named, f"{path}, mean predictor", work, r.windows, *constant))
    head = ("source", "construct", "dimension", "path", "work", "windows", "CCC", "PCC", "RMSE")
    more = f"\n\nThe other {len(works) - MOST_WORKS} works stand in results.json." * (len(works) > MOST_WORKS)
    return markdown_table(head, rows) + more


def _predictions(report: Report) -> Iterable[dict[str, Any]]:
    yield from map(_answer_row, report.answers)
    yield from map(_reading_row, report.readings)
    yield from map(_window_row, report.windows)


def _answer_row(answer: AnswerRow) -> dict[str, Any]:
    item, options = answer.item, answer.options
    parsed = [matched_option(text, options) for text in answer.written]
    listed = {
        "written": list(answer.written),
        "parsed": [None if k is None else options[k] for k in parsed],
    }
    return {
        "id": item.id,
        "path": answer.path,
        "task": item.task,
        "answer": options[answer.right_index],
        "chosen": answer.chosen,
        "right": answer.chosen_index == answer.right_index,
        "log_probabilities": dict(zip(options, answer.log_probabilities, strict=True)),
        **(listed if answer.written else {}),
    }


def _reading_row(reading: AffectRow) -> dict[str, Any]:
    item, affect = reading.item, reading.affect
    return {
        "id": item.id,
        "path": reading.path,
        "task": "affect",
        "construct": item.construct,
        **{name: getattr(item, name) for name in DIMENSIONS},
        **_predicted(affect),
    }


def _window_row(window: WindowRow) -> dict[str, Any]:
    return {
        "id": window.item.id,
        "path": window.path,
        "task": "affect over time",
        "construct": window.item.construct,
        "time_s": window.now_s,
        **{name: getattr(window, name) for name in DIMENSIONS},
        **_predicted(window.affect),
    }


def _predicted(affect: Affect) -> dict[str, Any]:
    return {
        **{f"predicted_{name}": float(getattr(affect, name)) for name in DIMENSIONS},
        **{f"predicted_{name}_sd": float(getattr(affect, f"{name}_sd")) for name in DIMENSIONS},
        "predicted_emotions": [float(share) for share in affect.emotions],
    }
