"""A benchmark's plots (PNG), drawn with matplotlib. In: a `Report`. Out: files in a folder.

Bars are horizontal, to leave room for long row names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vaemotion.contract.files import whole_file
from vaemotion.contract.front_end import PATHS
from vaemotion.evaluation.benchmark.results import Report
from vaemotion.evaluation.benchmark.rows import DIMENSIONS, AffectRow, Estimate, asked_on

COLORS = {"audio": "#c2572b", "visual": "#2b6cb0", "audio-visual": "#4a7c3a"}
DPI = 120
_BAR_INCHES = 0.34
_MARK_STYLES = ("dashed", "dotted")


@dataclass(frozen=True)
class _Bar:
    """One bar of a chart. ``marks``: values to mark with a dashed and a dotted line, for example chance."""

    name: str
    path: str
    estimate: Estimate
    marks: tuple[float, ...]


def write_plots(report: Report, out: Path) -> None:
    """Write a plot for each kind of result that the report has.

    The files are ``accuracy.png``, ``distributions.png`` and ``affect-<source>-<construct>.png``.
    """
    if report.choices:
        _plot_accuracy(report, out / "accuracy.png")
    if report.distributions:
        _plot_distributions(report, out / "distributions.png")
    for source, construct in dict.fromkeys((r.source, r.construct) for r in report.affects):
        _plot_affect(report, source, construct, out / f"affect-{file_part(source)}-{construct}.png")


def file_part(source: str) -> str:
    """Return a name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in source)


def _plot_accuracy(report: Report, path: Path) -> None:
    """Plot both ways of scoring side by side."""
    panels: dict[str, list[_Bar]] = {
        "unlisted options, log-probability": [
            _Bar(f"{r.source}, {r.task}\n{asked_on(r.path, r.own_path)}", r.path, r.accuracy, (r.chance,))
            for r in report.choices
        ]
    }
    if report.listed:
        panels["listed and rotated options, greedy answer"] = [
            _Bar(
                f"{r.source}, {r.task}\n{asked_on(r.path, r.own_path)}, parsed {r.parse_rate.value:.0%}",
                r.path,
                r.accuracy,
                (r.chance,),
            )
            for r in report.listed
        ]
    _bar_chart(panels, "Multiple choice: accuracy, 95 % intervals over works (dashed: chance)", path)


def _plot_distributions(report: Report, path: Path) -> None:
    bars = [
        _Bar(
            f"{r.source}, {r.construct}\n{asked_on(r.path, r.own_path)}",
            r.path,
            r.jsd,
            (r.uniform_jsd.value, r.mean_jsd.value),
        )
        for r in report.distributions
    ]
    title = "Emotion distributions: Jensen-Shannon divergence to the labels', less is better"
    _bar_chart({"dashed: uniform predictor, dotted: mean distribution": bars}, title, path)


def _bar_chart(panels: dict[str, list[_Bar]], title: str, path: Path) -> None:
    longest = max(map(len, panels.values()))
    figure = Figure(figsize=(2 + 4.6 * len(panels), 1.6 + 1.5 * _BAR_INCHES * longest), layout="constrained")
    for axes, (name, bars) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        _draw_bars(axes, bars)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _draw_bars(axes: Any, bars: Sequence[_Bar]) -> None:
    for position, bar in enumerate(bars):
        below, above = bar.estimate.value - bar.estimate.low, bar.estimate.high - bar.estimate.value
        # A percentile interval may not contain the estimate; an error bar cannot be negative.
        interval = [[max(0, below)], [max(0, above)]]
        axes.barh(position, bar.estimate.value, 0.7, color=COLORS[bar.path], xerr=interval, capsize=3)
        for mark, style in zip(bar.marks, _MARK_STYLES, strict=False):
            axes.vlines(mark, position - 0.45, position + 0.45, colors="black", linestyles=style)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=7)
    axes.tick_params(axis="x", labelsize=8)
    axes.set(xlim=(0, 1.02), ylim=(len(bars) - 0.4, -0.6))


def _plot_affect(report: Report, source: str, construct: str, path: Path) -> None:
    """Plot predictions over labels, one panel per dimension and path.

    In a control run there is one panel per path that the labels are for.
    """
    results = [r for r in report.affects if (r.source, r.construct) == (source, construct)]
    paths = sorted({(r.path, r.own_path) for r in results}, key=lambda p: tuple(map(PATHS.index, p)))
    dimensions = [name for name in DIMENSIONS if any(r.dimension == name for r in results)]
    figure = Figure(figsize=(0.8 + 3.3 * len(paths), 0.9 + 3.1 * len(dimensions)), layout="constrained")
    panels: Any = figure.subplots(len(dimensions), len(paths), sharex=True, sharey=True, squeeze=False)
    figures = {(r.dimension, r.path, r.own_path): r.ccc.value for r in results}
    for row, dimension in enumerate(dimensions):
        for column, (asked, own) in enumerate(paths):
            axes, score = panels[row, column], figures.get((dimension, asked, own))
            panel_rows = [
                r
                for r in report.readings
                if (r.item.source, r.item.construct, r.path, r.item.modality)
                == (source, construct, asked, own)
            ]
            _scatter(axes, panel_rows, dimension, COLORS[asked])
            result = "no labels" if score is None else f"CCC {score:.2f}"
            axes.set_title(f"{dimension}, {asked_on(asked, own)}\n{result}", fontsize=8)
    figure.supxlabel("label", fontsize=9)
    figure.supylabel("predicted", fontsize=9)
    figure.suptitle(f"{source}, {construct}", fontsize=10)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _scatter(axes: Any, readings: Sequence[AffectRow], dimension: str, color: str) -> None:
    panel_rows = [r for r in readings if getattr(r.item, dimension) is not None]
    truth = np.array([getattr(r.item, dimension) for r in panel_rows], np.float64)
    predicted = np.array([getattr(r.affect, dimension) for r in panel_rows], np.float64)
    axes.plot([-1, 1], [-1, 1], color="black", linewidth=0.7)
    axes.scatter(truth, predicted, s=9, alpha=0.6, color=color)
    ticks = (-1, -0.5, 0, 0.5, 1)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=ticks, yticks=ticks, aspect="equal")
    axes.tick_params(labelsize=7)
