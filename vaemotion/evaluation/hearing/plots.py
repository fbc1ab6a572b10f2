"""The hearing report's plots, drawn with matplotlib.

In: a `HearingReport`. Out: PNG bytes by file name.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vaemotion.evaluation.benchmark.rows import Estimate
from vaemotion.evaluation.hearing.alignment import SwappedSound
from vaemotion.evaluation.hearing.conditions import COMPARISON, CONTROL, MODEL, Recognition
from vaemotion.evaluation.hearing.verdict import HearingReport, confusion_file

_COLORS = {MODEL: "#c2572b", CONTROL: "#8a8f98", COMPARISON: "#2b6cb0"}
_DPI = 120


def draw_plots(report: HearingReport) -> dict[str, bytes]:
    """Draw every plot as PNG, by file name."""
    made = {"conditions.png": _conditions(report.recognised)}
    if report.followed:
        made["follow.png"] = _swapped_sound(report.followed)
    for found in report.recognised:
        made[confusion_file(found.kind)] = _confusion(found)
    return {name: _png(figure) for name, figure in made.items()}


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _conditions(recognised: Sequence[Recognition]) -> Figure:
    """Plot one panel per material; bars are horizontal, to leave room for their names."""
    longest = max(len(found.conditions) for found in recognised)
    figure = Figure(figsize=(2.2 + 4.2 * len(recognised), 1.5 + 0.36 * longest), layout="constrained")
    panels: Any = figure.subplots(1, len(recognised), sharey=True, squeeze=False)
    for axes, found in zip(panels[0], recognised, strict=True):
        for position, condition in enumerate(found.conditions):
            if condition.accuracy is None:
                _note(axes, 0.0, position, "not measured")
            else:
                _bar(axes, position, condition.accuracy, _COLORS[condition.kind])
        axes.axvline(found.chance, color="black", linestyle="dashed", linewidth=0.9)
        _finish(axes, [condition.name for condition in found.conditions])
        axes.set_title(f"{found.material}, {found.clips} clips", fontsize=9)
    figure.suptitle("Accuracy from sound alone, 95 % intervals (dashed: chance)", fontsize=10)
    return figure


def _swapped_sound(followed: Sequence[SwappedSound]) -> Figure:
    """Plot one panel per material."""
    figure = Figure(figsize=(2.2 + 4.2 * len(followed), 2.2), layout="constrained")
    panels: Any = figure.subplots(1, len(followed), sharey=True, squeeze=False)
    for axes, found in zip(panels[0], followed, strict=True):
        rows = {
            "the class seen": (found.sight, "#2b6cb0"),
            "the class heard": (found.sound, "#c2572b"),
            "neither": (found.neither, "#8a8f98"),
        }
        for position, (share, color) in enumerate(rows.values()):
            _bar(axes, position, share, color)
        _finish(axes, list(rows))
        axes.set_title(found.material, fontsize=9)
    figure.suptitle("Sight of one class, sound of another: what is named, 95 % intervals", fontsize=10)
    return figure


def _bar(axes: Any, position: int, share: Estimate, color: str) -> None:
    # A percentile interval may not contain the estimate; an error bar cannot be negative.
    interval = [[max(0.0, share.value - share.low)], [max(0.0, share.high - share.value)]]
    axes.barh(position, share.value, 0.68, color=color, xerr=interval, capsize=3, error_kw={"linewidth": 1})
    _note(axes, max(share.value, share.high), position, f"{share.value:.2f}")


def _note(axes: Any, right_of: float, position: int, text: str) -> None:
    """Write a text on white, so that the line of chance does not cross it."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.text(right_of + 0.015, position, text, va="center", fontsize=7, color="#44484f", bbox=box, zorder=3)


def _finish(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6), ylim=(len(names) - 0.4, -0.6))


def _confusion(found: Recognition) -> Figure:
    """Plot a confusion matrix: colors are shares of a class's clips, numbers are counts."""
    counts = np.array(found.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.4 + 0.33 * len(counts)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes: Any = figure.subplots()
    axes.imshow(shares, cmap="Oranges", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(counts)), found.options, fontsize=7, rotation=90)
    axes.set_yticks(range(len(counts)), found.options, fontsize=7)
    axes.set_xlabel("named", fontsize=8)
    axes.set_ylabel("heard", fontsize=8)
    axes.set_title(f"{found.material}: what the model names", fontsize=9)
    return figure
