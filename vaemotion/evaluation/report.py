"""A benchmark's report on disk: ``results.json``, ``results.md``, ``predictions.jsonl`` and plots (PNG)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vaemotion.contract.front_end import PATHS
from vaemotion.evaluation.results import DIMENSIONS, AffectResult, ChoiceResult, Estimate, Report

_COLOURS = {"audio": "#c2572b", "visual": "#2b6cb0", "audio-visual": "#4a7c3a"}


def write_report(report: Report, out: Path) -> None:
    """Write all files of a report into ``out``. Without matplotlib the plots are left out, and a line says so."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(
        json.dumps(summary(report), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    (out / "results.md").write_text(markdown(report) + "\n", encoding="utf-8")
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in _predictions(report))
    with (out / "predictions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(lines)
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed (pip install 'vaemotion[plot]')", file=sys.stderr)
        return
    if report.choices:
        _plot_accuracy(report.choices, out / "accuracy.png")
    for source in dict.fromkeys(reading.item.source for reading in report.readings):
        _plot_affect(report, source, out / f"affect-{_file_part(source)}.png")


def summary(report: Report) -> dict[str, Any]:
    """The figures as plain values, without the single answers."""
    return {
        "choices": [asdict(result) for result in report.choices],
        "affects": [asdict(result) for result in report.affects],
        "left_out": report.left_out,
        "bootstrap": {"resamples": report.bootstrap, "seed": report.seed, "coverage": 0.95, "over": "works"},
        "wall_s": round(report.wall_s, 3),
    }


def markdown(report: Report) -> str:
    """The figures as Markdown tables."""
    parts: list[str] = []
    if report.choices:
        parts.append(
            "## Multiple choice (mean token log-probability, unlisted options)\n\n"
            + _choice_table(report.choices)
        )
    if report.affects:
        parts.append("## Valence and arousal\n\n" + _affect_table(report.affects))
    parts.append(
        f"Brackets: 95 % bootstrap intervals over works, {report.bootstrap} resamples, seed {report.seed}."
    )
    if report.left_out:
        listed = ", ".join(f"{count} × {reason}" for reason, count in report.left_out.items())
        parts.append(f"Left out: {listed}.")
    return "\n\n".join(parts)


def _choice_table(results: Sequence[ChoiceResult]) -> str:
    rows = [
        (r.source, r.task, r.path, r.items, _shown(r.accuracy), f"{r.chance:.3f}", f"{r.macro_f1:.3f}")
        for r in results
    ]
    return _table(("source", "task", "path", "items", "accuracy", "chance", "macro F1"), rows)


def _affect_table(results: Sequence[AffectResult]) -> str:
    """Each dimension's paths, and below them the mean predictor of each path."""
    rows: list[tuple[object, ...]] = []
    for r in results:
        figures = (_shown(r.ccc), _shown(r.pcc), _shown(r.rmse), f"{r.nll:.3f}", f"{r.mean_sd:.3f}")
        rows.append((r.source, r.dimension, r.path, r.readings, *figures))
        rows.append(
            (
                r.source,
                r.dimension,
                f"{r.path}, mean predictor",
                r.readings,
                "0.000",
                "0.000",
                f"{r.mean_rmse:.3f}",
                "",
                "",
            )
        )
    return _table(("source", "dimension", "path", "n", "CCC", "PCC", "RMSE", "NLL", "mean sd"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _predictions(report: Report) -> Iterable[dict[str, Any]]:
    for answer in report.answers:
        item = answer.item
        yield {
            "id": item.id,
            "path": item.modality,
            "task": item.task,
            "answer": (item.options or ())[item.answer_index or 0],
            "chosen": answer.chosen,
            "right": answer.chosen_index == item.answer_index,
            "log_probabilities": dict(zip(item.options or (), answer.log_probabilities, strict=True)),
        }
    for reading in report.readings:
        item, affect = reading.item, reading.affect
        yield {
            "id": item.id,
            "path": item.modality,
            "task": "affect",
            **{name: getattr(item, name) for name in DIMENSIONS},
            **{f"predicted_{name}": float(getattr(affect, name)) for name in DIMENSIONS},
            **{f"predicted_{name}_sd": float(getattr(affect, f"{name}_sd")) for name in DIMENSIONS},
            "predicted_emotions": [float(share) for share in affect.emotions],
        }


def _file_part(source: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in source)


def _plot_accuracy(results: Sequence[ChoiceResult], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 1.1 * len(results), 4), layout="constrained")
    axes = figure.add_subplot()
    for position, r in enumerate(results):
        below, above = r.accuracy.value - r.accuracy.low, r.accuracy.high - r.accuracy.value
        # A percentile interval need not hold the estimate; an error bar cannot be negative.
        axes.bar(
            position,
            r.accuracy.value,
            0.7,
            color=_COLOURS[r.path],
            yerr=[[max(0, below)], [max(0, above)]],
            capsize=4,
        )
        axes.hlines(r.chance, position - 0.45, position + 0.45, colors="black", linestyles="dashed")
    axes.set_xticks(range(len(results)), [f"{r.task}\n{r.path}\n{r.source}" for r in results], fontsize=8)
    axes.set(ylim=(0, 1.02), ylabel="accuracy (dashed: chance)")
    axes.set_title("Multiple choice, 95 % intervals over works", fontsize=10)
    figure.savefig(path, dpi=120)


def _plot_affect(report: Report, source: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels: Any = figure.subplots(len(DIMENSIONS), len(PATHS), sharex=True, sharey=True)
    figures = {(r.dimension, r.path): r for r in report.affects if r.source == source}
    for row, dimension in enumerate(DIMENSIONS):
        for column, modality in enumerate(PATHS):
            axes, result = panels[row, column], figures.get((dimension, modality))
            _scatter(axes, report, source, dimension, modality)
            score = "no labels" if result is None else f"CCC {result.ccc.value:.2f}"
            axes.set_title(f"{dimension}, {modality}: {score}", fontsize=9)
    panels[-1, 1].set_xlabel("true")
    panels[0, 0].set_ylabel("predicted")
    panels[1, 0].set_ylabel("predicted")
    figure.suptitle(source, fontsize=10)
    figure.savefig(path, dpi=120)


def _scatter(axes: Any, report: Report, source: str, dimension: str, modality: str) -> None:
    mine = [
        r
        for r in report.readings
        if (r.item.source, r.item.modality) == (source, modality) and getattr(r.item, dimension) is not None
    ]
    truth = np.array([getattr(r.item, dimension) for r in mine], np.float64)
    predicted = np.array([getattr(r.affect, dimension) for r in mine], np.float64)
    axes.plot([-1, 1], [-1, 1], color="black", linewidth=0.7)
    axes.scatter(truth, predicted, s=9, alpha=0.6, color=_COLOURS[modality])
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
