"""The plot of ``vaemotion bench``: time against loss of accuracy for each role's precisions.

In: a ``Bench``. Out: a PNG. Where the manifest holds no accuracy, size takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.commands.bench.report import Bench, BenchRow, comparison, reference_of, worst_delta
from runtime.commands.timeline.plot import LIGHT, figure_bytes
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import write_whole

Point = tuple[float, float]
_PANEL_IN, _HEIGHT_IN = 3.1, 4.2
_COLORS = {
    "vision_encoder": LIGHT.visual,
    "audio_encoder": LIGHT.audio,
    "emo_adapter": LIGHT.valence,
    "language_model": LIGHT.arousal,
}


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto front of points whose coordinates should be small, by their first coordinate."""
    front: list[Point] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def height_of(measured: Bench, row: BenchRow) -> float | None:
    """Return a row's y: its largest delta, or its size in MB where no row has any; None: not measured."""
    if not any(other.accuracy for other in measured.rows):
        return row.size_bytes / 1e6
    worst = worst_delta(row)
    if worst is not None:
        return abs(worst.delta)
    return 0.0 if row is reference_of(measured, row.role) else None


def plot_bench(measured: Bench, file: Path) -> None:
    """Write the plot as a PNG. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("plots need matplotlib: install it with `pip install 'vaemotion[plot]'`") from error
    roles = list(dict.fromkeys(row.role for row in measured.rows))
    width_in = _PANEL_IN * len(roles) + 0.6
    figure: Any = Figure(figsize=(width_in, _HEIGHT_IN), facecolor=LIGHT.paper)
    left, right = 0.75 / width_in, 1 - 0.25 / width_in
    figure.subplots_adjust(left=left, right=right, top=0.735, bottom=0.2, wspace=0.32)
    panels = figure.subplots(1, len(roles), squeeze=False)[0]
    for axes, role in zip(panels, roles, strict=True):
        draw_role(axes, measured, role)
    known = any(row.accuracy for row in measured.rows)
    panels[0].set_ylabel("largest change of a metric" if known else "size, MB", color=LIGHT.muted, fontsize=9)
    title = {"parse_math": False, "weight": "bold", "color": LIGHT.ink, "fontsize": 14}
    figure.text(left, 0.92, f"{measured.bundle}: cost of each precision", **title)
    what = "accuracy" if known else "size (the manifest holds no accuracy)"
    small = f"time against {what}; lower left is better  ·  {measured.machine}, {measured.threads} threads"
    figure.text(left, 0.855, small, parse_math=False, color=LIGHT.muted, fontsize=9)
    key = "filled: opened by a run  ·  line: Pareto front  ·  bar: p50 to p95"
    if any(row.foreign for row in measured.rows):
        key += "  ·  *: made for a GPU, timed on the CPU"
    figure.text(left, 0.03, key, color=LIGHT.muted, fontsize=8.5)
    write_whole(file, figure_bytes(figure, "png"))


def draw_role(axes: Any, measured: Bench, role: str) -> None:
    """Draw one role's precisions, a labeled mark each, and their Pareto front."""
    color = _COLORS.get(role, LIGHT.ink)
    axes.set(facecolor=LIGHT.paper)
    axes.set_title(role.replace("_", " "), loc="left", color=color, fontsize=10.5, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT.rule)
    axes.tick_params(length=0, labelsize=8, colors=LIGHT.muted)
    axes.grid(color=LIGHT.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("ms/token" if role == "language_model" else "ms/inference", color=LIGHT.muted, fontsize=9)
    at = _points(measured, role)
    _set_limits(axes, at)
    front = pareto([place for row, place in at if not row.foreign])
    axes.plot(*zip(*front, strict=True), color=color, alpha=0.5, linewidth=1.2) if front else None
    for row, (x, y) in at:
        axes.plot([x, row.p95_ms], [y, y], color=color, alpha=0.35, linewidth=3, solid_capstyle="round")
        fill = color if row.taken else LIGHT.paper
        axes.scatter([x], [y], s=70, facecolor=fill, edgecolor=color, linewidths=1.6, zorder=3)
        label_mark(axes, measured, row, (x, y))
    missing = [row.precision for row in measured.rows if row.role == role and row not in dict(at)]
    if missing:
        note = f"not placed: {', '.join(missing)}"
        axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=7.5)


def label_mark(axes: Any, measured: Bench, row: BenchRow, place: Point) -> None:
    """Write a mark's precision and speed verdict above it, and the metric with the largest change below."""
    name, worst = f"{row.precision}{'*' if row.foreign else ''}", worst_delta(row)
    verdict = comparison(measured, row)
    at_right = place[0] > 0.55 * axes.get_xlim()[1]
    side, nudge = ("right", 5) if at_right else ("left", -5)
    style = {"ha": side, "zorder": 4, "textcoords": "offset points"}
    axes.annotate(
        f"{name}, {verdict} here" if verdict else name,
        place,
        xytext=(nudge, 8),
        fontsize=8.5,
        color=LIGHT.ink,
        weight="bold" if verdict else "normal",
        **style,
    )
    if worst:
        axes.annotate(
            worst.metric.replace("_", " "), place, xytext=(nudge, -15), fontsize=7, color=LIGHT.muted, **style
        )


def _points(measured: Bench, role: str) -> list[tuple[BenchRow, Point]]:
    """Return the rows of a role that have both figures, with their points."""
    rows = [row for row in measured.rows if row.role == role]
    known = [(row, row.p50_ms, height_of(measured, row)) for row in rows]
    return [(row, (x, y)) for row, x, y in known if x is not None and y is not None]


def _set_limits(axes: Any, at: list[tuple[BenchRow, Point]]) -> None:
    """Let both axes start at zero, so that lengths compare as values, with room for the labels."""
    right = max((max(x, row.p95_ms or x) for row, (x, _) in at), default=1.0)
    top = max((y for _, (_, y) in at), default=0.0)
    axes.set_xlim(0, 1.12 * right)
    axes.set_ylim(-0.04 * (top or 1), 1.25 * top if top else 1)
