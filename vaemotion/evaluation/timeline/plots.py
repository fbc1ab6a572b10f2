"""Plots of timelines against labels (PNG), drawn with matplotlib. In: a report. Out: files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vaemotion.contract.files import whole_file
from vaemotion.evaluation.benchmark.plots import COLORS, DPI, file_part
from vaemotion.evaluation.benchmark.rows import DIMENSIONS
from vaemotion.evaluation.timeline.results import TimelineReport, WorkPair
from vaemotion.evaluation.timeline.series import Array, Series

MOST_PLOTS = 20  # works that get a plot

MOST_POINTS = 2000  # of a curve
_LABEL_COLOR, _RATER_COLOR = "#22262e", "#b9b4a8"


def write_plots(report: TimelineReport, out: Path) -> None:
    """Write ``lag.png``, and ``timeline-<work>.png`` for at most ``MOST_PLOTS`` works."""
    _plot_lags(report, out / "lag.png")
    names: set[str] = set()
    for number, pair in enumerate(report.pairs[:MOST_PLOTS]):
        name = file_part(pair.track.work)
        _plot_work(report, pair, out / f"timeline-{name if name not in names else f'{name}-{number}'}.png")
        names.add(name)


def _plot_lags(report: TimelineReport, path: Path) -> None:
    """Plot CCC over the lag: of all works together, or of the only one."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes: Any = figure.subplots()
    first = report.results[0].work
    for result, color in zip(
        [r for r in report.results if r.work == first], ("#0b7a75", "#c8443c"), strict=False
    ):
        lags = np.array(result.lags)  # (n, 2)
        axes.plot(lags[:, 0], lags[:, 1], color=color, label=f"{result.dimension}, {result.path}")
        axes.plot(result.best.lag_s, result.best.ccc, "o", color=color, markersize=4)
    axes.axvline(0, color="black", linewidth=0.7)
    axes.set_xlabel("lag of the labels after the readings, s", fontsize=9)
    axes.set_ylabel("CCC", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("Agreement at every lag (dot: the best, an oracle)", fontsize=10)
    _save(figure, path)


def _plot_work(report: TimelineReport, pair: WorkPair, path: Path) -> None:
    """Plot readings with their interval over labels with the raters' spread, one panel per dimension."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels: Any = figure.subplots(len(DIMENSIONS), 1, sharex=True)
    results = {r.dimension: r for r in report.results if r.work == pair.track.work}
    interval = "90 % interval" if pair.track.calibrated else "one standard deviation"
    color = COLORS[pair.track.path]
    for axes, dimension in zip(panels, DIMENSIONS, strict=True):
        readings, bands = pair.track.readings[dimension], pair.track.bands[dimension]
        times_s = _points_s(readings)
        value, band = readings.at(times_s), bands.at(times_s)
        _draw_labels(axes, pair, dimension, times_s, report.settings.reaction_lag_s)
        axes.fill_between(
            times_s, value - band, value + band, color=color, alpha=0.18, linewidth=0, label=interval
        )
        axes.plot(times_s, value, color=color, linewidth=1.2, label=f"model, {pair.track.path}")
        found = results.get(dimension)
        score = "too few labels" if found is None else f"CCC {found.ccc.value:.2f}"
        axes.set_title(f"{dimension}: {score}", fontsize=9, loc="left")
        axes.set(ylim=(-1.05, 1.05), xlim=(times_s[0], times_s[-1]))
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7, frameon=False, ncols=4, loc="lower right")
    panels[-1].set_xlabel("time, s", fontsize=9)
    figure.suptitle(pair.track.work, fontsize=10, parse_math=False)
    _save(figure, path)


def _points_s(readings: Series) -> Array:
    """Return times to plot at: a curve is interrupted where ``Series.at`` gives NaN."""
    start_s, end_s = float(readings.time_s[0]), float(readings.time_s[-1])
    return np.linspace(start_s, max(end_s, start_s + 0.1), MOST_POINTS)


def _draw_labels(axes: Any, pair: WorkPair, dimension: str, times_s: Array, reaction_lag_s: float) -> None:
    labels = pair.labels.labels.get(dimension)
    if labels is None:
        return
    raters = list(pair.labels.raters.get(dimension, {}).values())
    if len(raters) > 1:
        values = np.ma.masked_invalid([rater.at(times_s + reaction_lag_s) for rater in raters])  # (raters, n)
        mean, spread = values.mean(axis=0), values.std(axis=0)
        name = f"{len(raters)} raters, one standard deviation"
        axes.fill_between(
            times_s, mean - spread, mean + spread, color=_RATER_COLOR, alpha=0.5, linewidth=0, label=name
        )
    axes.plot(times_s, labels.at(times_s + reaction_lag_s), color=_LABEL_COLOR, linewidth=1.2, label="labels")


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
