"""``vaemotion plot``: plot a timeline's valence and arousal, live modalities and narrations.

In: a timeline file. Out: a PNG. ``draw`` makes the matplotlib figure, which the report embeds as SVG in other
widths and colors. Everything is placed in inches, so that the text keeps its size in any width and for any
number of narrations.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from runtime.commands.timeline.read import Points, Timeline, output_file, points_of, read_timeline
from runtime.messages import Narration, source_name
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.prompts import AROUSAL_WORDS, VALENCE_WORDS, level_word
from vaemotion.contract.terminal import tell
from vaemotion.contract.words import counted, duration_words, time_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Float64 = npt.NDArray[np.float64]
MOST_NARRATIONS = 12  # with their texts
PNG_DOTS_PER_INCH = 160
_TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
_PANEL_IN, _TRACK_IN, _LINE_IN = 1.55, 0.28, 0.185  # heights of a curve's panel, a track, a line of text
_LEFT_IN, _RIGHT_IN = 0.85, 1.15  # margins beside the axes
_MOST_LINES = 3  # of one narration


@dataclass(frozen=True)
class Palette:
    """The colors of a plot, as #rrggbb."""

    paper: str
    ink: str
    muted: str
    rule: str
    valence: str
    arousal: str
    audio: str
    visual: str


LIGHT = Palette("#fbfaf7", "#22262e", "#6a6f79", "#e3e0d8", "#0b7a75", "#c8443c", "#7b5ea7", "#c99320")
DARK = Palette("#16181d", "#ebe8e1", "#9ba1ab", "#2e323a", "#4fc4ba", "#ff8a73", "#b39ddb", "#e6b84f")


def shown_narrations(timeline: Timeline) -> tuple[Narration, ...]:
    """Return the narrations that are shown with a number, by ``about_s``.

    All, or ``MOST_NARRATIONS`` evenly chosen ones with the first and the last.
    """
    ordered = sorted(timeline.narrations, key=lambda narration: narration.about_s)
    chosen = np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_NARRATIONS))
    return tuple(ordered[round(float(index))] for index in chosen)


def caption(timeline: Timeline) -> str:
    """Return the caption: the meaning of line and band, and the number of narrations left out."""
    bin_s, count = points_of(timeline).bin_s, len(timeline.narrations)
    line = "each reading" if bin_s is None else f"mean over {duration_words(bin_s)}"
    more = f" {MOST_NARRATIONS} of {count:,} narrations are shown." if count > MOST_NARRATIONS else ""
    return f"Line: {line}. Band: one predicted standard deviation to either side.{more}"


def time_ticks(duration_s: float, most: int) -> tuple[list[float], list[str], str]:
    """Return round times of the axis in seconds, at most ``most`` + 1, their labels and the unit."""
    days_s = 86400 * max(1, int(np.ceil(duration_s / most / 86400)))
    step_s = next((step for step in _TICK_STEPS_S if duration_s / step <= most), days_s)
    times_s = [step_s * k for k in range(int(duration_s / step_s + 1e-9) + 1)]
    if duration_s < 60:
        return times_s, [f"{time_s:g}" for time_s in times_s], "seconds"
    last, unit = (None, "min : s") if duration_s < 3600 else (-3, "h : min")
    return times_s, [time_words(time_s, duration_s)[:last] for time_s in times_s], unit


def spread_out(wanted: Float64, apart: float, low: float, high: float) -> Float64:
    """Move ascending positions (n,) so that they are ``apart`` and within [low, high].

    Positions move to the right, and back where they would leave the range. They are closer than ``apart``
    only where the range has no room for all.
    """
    if not len(wanted):
        return wanted
    steps: Float64 = min(apart, (high - low) / max(1, len(wanted) - 1)) * np.arange(float(len(wanted)))
    pushed: Float64 = np.maximum.accumulate(np.maximum(wanted, low) - steps)
    return np.minimum(pushed, high - steps[-1]) + steps


@dataclass(frozen=True)
class Sheet:
    """A figure under construction; positions are in inches from its top left corner."""

    figure: Any  # matplotlib's own types are too incomplete for strict checking
    palette: Palette
    width_in: float
    height_in: float
    timeline: Timeline

    @property
    def axes_width_in(self) -> float:
        """Width between the margins."""
        return self.width_in - _LEFT_IN - _RIGHT_IN

    @property
    def duration_s(self) -> float:
        """Length of the time axis."""
        return max(self.timeline.duration_s, 0.1)

    def axes(self, top_in: float, height_in: float) -> Any:
        """Add axes over the run's whole time, without frame and ticks."""
        place_in = np.array([_LEFT_IN, self.height_in - top_in - height_in, self.axes_width_in, height_in])
        axes = self.figure.add_axes(place_in / ([self.width_in, self.height_in] * 2))
        axes.set(facecolor=self.palette.paper, xlim=(0, self.duration_s), xticks=[])
        axes.tick_params(length=0, labelsize=8, colors=self.palette.muted)
        axes.set_frame_on(False)
        return axes

    def text(self, left_in: float, top_in: float, text: str, **style: Any) -> None:
        """Add small text with its baseline at ``top_in``; a $ in it does not begin a formula."""
        x, y = left_in / self.width_in, 1 - top_in / self.height_in
        small = {"color": self.palette.muted, "fontsize": 7.5}
        self.figure.text(x, y, text, parse_math=False, **(small | style))


def draw(
    timeline: Timeline, *, width_in: float = 10.0, palette: Palette = LIGHT, texts: bool = True
) -> Figure:
    """Draw a timeline as a figure. Raises UserError where matplotlib is not installed.

    ``texts``: with title, caption and the narrations' texts, for a plot that stands alone.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("plots need matplotlib: install it with `pip install 'vaemotion[plot]'`") from error
    entries = narration_lines(timeline, width_in) if texts else []
    top_in = 0.95 if texts else 0.1
    list_in = sum(_LINE_IN * len(lines) + 0.07 for _, lines in entries) + (0.55 if texts else 0)
    panels_in = 2 * (_PANEL_IN + 0.42)
    height_in = np.ceil(20 * (top_in + panels_in + 3 * _TRACK_IN + 0.4 + list_in)) / 20  # whole dots
    figure = Figure(figsize=(width_in, height_in), facecolor=palette.paper)
    sheet = Sheet(figure, palette, width_in, height_in, timeline)
    points = points_of(timeline)
    below_in = top_in
    for name in ("valence", "arousal"):
        below_in = draw_affect(sheet, points, name, below_in + 0.3) + 0.12
    below_in = draw_tracks(sheet, points, below_in)
    if texts:
        draw_title(sheet)
        draw_texts(sheet, entries, caption(timeline), below_in + 0.45)
    return figure


def draw_affect(sheet: Sheet, points: Points, name: str, top_in: float) -> float:
    """Draw valence or arousal over time with its spread. Returns the end of its panel in inches."""
    axes = sheet.axes(top_in, _PANEL_IN)
    color: str = getattr(sheet.palette, name)
    values: Float64 = getattr(points, name)
    spread: Float64 = getattr(points, f"{name}_sd")
    words = VALENCE_WORDS if name == "valence" else AROUSAL_WORDS
    axes.set(ylim=(-1, 1))
    axes.set_yticks([-1, 0, 1], ["−1", "0", "+1"])
    for boundary in np.linspace(-1, 1, len(words) + 1):
        axes.axhline(boundary, color=sheet.palette.rule, linewidth=0.6, zorder=0, clip_on=False)
    for index, word in enumerate(reversed(words)):
        below_in = top_in + (index + 0.5) * _PANEL_IN / len(words)
        sheet.text(_LEFT_IN + sheet.axes_width_in + 0.1, below_in, word, va="center")
    gaps = np.flatnonzero(np.diff(points.time_s) > points.hold_s) + 1
    time_s, middle, sd = (np.insert(a, gaps, np.nan) for a in (points.time_s, values, spread))
    axes.fill_between(time_s, middle - sd, middle + sd, color=color, alpha=0.2, linewidth=0)
    axes.plot(time_s, middle, color=color, linewidth=1.6, solid_joinstyle="round")
    edges = np.concatenate([[0], gaps, [len(values)]])
    lone = edges[:-1][np.diff(edges) == 1]  # one reading between two gaps has no line
    axes.errorbar(points.time_s[lone], values[lone], spread[lone], fmt="o", color=color, clip_on=False)
    mean = sheet.timeline.mean(name)
    sheet.text(_LEFT_IN, top_in - 0.09, name.capitalize(), fontsize=10.5, weight="bold", color=color)
    summary = f"on average {mean:+.2f}, {level_word(mean, words)}".replace("-", "−")
    sheet.text(_LEFT_IN + 0.85, top_in - 0.09, summary, fontsize=8.5)
    return top_in + _PANEL_IN


def draw_tracks(sheet: Sheet, points: Points, top_in: float) -> float:
    """Draw narrations, live modalities and the time axis. Returns the end of the tracks in inches."""
    axes = sheet.axes(top_in, 3 * _TRACK_IN)
    axes.set_ylim(2.5, -0.5)
    axes.set_yticks([0, 1, 2], ["narration", "audio", "visual"])
    axes.tick_params(axis="y", pad=9)  # room for a mark at the very beginning
    readings, follows_s = sheet.timeline.readings, np.append(np.diff(points.time_s), np.inf)
    gap = follows_s > points.hold_s
    end_s = points.time_s + np.where(gap, points.step_s, follows_s)
    for row, name in ((1, "audio"), (2, "visual")):
        axes.barh(row, sheet.duration_s, 0.5, color=sheet.palette.rule, alpha=0.6, zorder=0)
        live: npt.NDArray[np.bool_] = getattr(points, name)
        changes = np.flatnonzero((live[1:] != live[:-1]) | gap[:-1]) + 1
        runs = zip(np.append(0, changes), np.append(changes, len(live)) - 1, strict=True)
        spans = [(points.time_s[a], end_s[b] - points.time_s[a]) for a, b in runs if live[a]]
        axes.broken_barh(spans, (row - 0.25, 0.5), color=getattr(sheet.palette, name), linewidth=0)
        share = sum(name in reading.path for reading in readings) / len(readings)
        sheet.text(
            _LEFT_IN + sheet.axes_width_in + 0.1,
            top_in + (row + 0.5) * _TRACK_IN,
            f"{share:.0%}",
            va="center",
        )
    draw_marks(sheet, axes)
    times_s, labels, unit = time_ticks(sheet.duration_s, int(sheet.axes_width_in / 0.75))
    axes.set_xticks(times_s, labels)
    below_in = top_in + 3 * _TRACK_IN
    sheet.text(_LEFT_IN - 0.2, below_in + 0.145, unit, fontsize=8, ha="right")
    return below_in


def draw_marks(sheet: Sheet, axes: Any) -> None:
    """Draw the narrations' numbers, and a thin line through the curves at each one's reading."""
    about_s = np.array([narration.about_s for narration in shown_narrations(sheet.timeline)])
    apart_s = 0.24 * sheet.duration_s / sheet.axes_width_in  # a mark is 0.17 inches wide
    mark_s = spread_out(about_s, apart_s, 0, sheet.duration_s)
    style = {"color": sheet.palette.muted, "linewidth": 0.6}
    for number, (at_s, shown_s) in enumerate(zip(about_s, mark_s, strict=True), start=1):
        for panel in sheet.figure.axes[:2]:
            panel.axvline(at_s, alpha=0.6, dashes=(1, 3), **style)
        axes.plot([at_s, shown_s], [-0.5, 0], clip_on=False, **style)
        draw_number(axes, shown_s, 0, number, sheet.palette)


def draw_number(axes: Any, x: float, y: float, number: int, palette: Palette) -> None:
    """Draw a number in a filled circle."""
    axes.scatter([x], [y], s=150, color=palette.ink, zorder=3, clip_on=False, linewidths=0)
    style = {"ha": "center", "va": "center_baseline", "fontsize": 7.5, "weight": "bold", "zorder": 4}
    axes.text(x, y, str(number), color=palette.paper, **style)


def narration_lines(timeline: Timeline, width_in: float) -> list[tuple[str, list[str]]]:
    """Return time and wrapped text of each numbered narration."""
    letters = int((width_in - _LEFT_IN - 1.3) * 72 / 5.8)  # at 9 points a letter is at most about 5.8 wide
    entries: list[tuple[str, list[str]]] = []
    for narration in shown_narrations(timeline):
        text = " ".join(narration.text.split())
        lines = textwrap.wrap(text, letters, max_lines=_MOST_LINES, placeholder=" …") or [""]
        entries.append((time_words(narration.about_s, timeline.duration_s), lines))
    return entries


def draw_title(sheet: Sheet) -> None:
    """Write source, bundle, duration and counts; long names are shortened in the middle."""
    timeline, letters = sheet.timeline, int((sheet.width_in - _LEFT_IN - 0.3) * 72 / 10)
    start = timeline.start
    source = cut_middle(source_name(start.source) if start else "unknown source", letters)
    bundle = cut_middle(start.bundle if start else "unknown bundle", letters // 2)
    counts = [counted(len(timeline.readings), "reading"), counted(len(timeline.narrations), "narration")]
    facts = [bundle, duration_words(timeline.duration_s), *counts]
    facts += [] if timeline.end else ["did not end by itself"]
    sheet.text(_LEFT_IN, 0.45, source, fontsize=15, weight="bold", color=sheet.palette.ink)
    sheet.text(_LEFT_IN, 0.7, "  ·  ".join(facts), fontsize=9.5)


def cut_middle(text: str, most: int) -> str:
    """Return the text on one line with at most ``most`` characters, shortened in the middle."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"


def draw_texts(sheet: Sheet, entries: list[tuple[str, list[str]]], small_print: str, top_in: float) -> None:
    """Write the numbered narrations from ``top_in`` downwards, and the small print at the bottom."""
    palette, axes = sheet.palette, sheet.figure.add_axes((0, 0, 1, 1), facecolor="none")
    axes.set(xlim=(0, sheet.width_in), ylim=(sheet.height_in, 0))
    axes.set_axis_off()
    below_in = top_in + 0.15
    for number, (at, lines) in enumerate(entries, start=1):
        draw_number(axes, _LEFT_IN + 0.1, below_in - 0.045, number, palette)
        sheet.text(_LEFT_IN + 0.85, below_in, at, fontsize=8.5, ha="right")
        for line in lines:
            sheet.text(_LEFT_IN + 1.0, below_in, line, fontsize=9, color=palette.ink)
            below_in += _LINE_IN
        below_in += 0.07
    sheet.text(_LEFT_IN, sheet.height_in - 0.18, small_print)


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """Encode a figure as "png" or "svg"; the same figure gives the same bytes."""
    import matplotlib

    stream, settings = io.BytesIO(), cast(Any, matplotlib).rc_context({"svg.hashsalt": "vaemotion"})
    with warnings.catch_warnings(), settings:
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it is drawn as a box
        metadata = {"Date": None} if file_format == "svg" else None
        cast(Any, figure).savefig(stream, format=file_format, dpi=PNG_DOTS_PER_INCH, metadata=metadata)
    return stream.getvalue()


def plot(timeline_file: Path, out: Path | None) -> None:
    """Write a timeline's plot to ``out`` (default: beside it, .png) and print its path.

    Raises TimelineError for a damaged timeline, UsageError for another ending of ``out``.
    """
    file = output_file(timeline_file, out, ".png")
    write_whole(file, figure_bytes(draw(read_timeline(timeline_file)), "png"))
    tell(f"plot: {file}")
