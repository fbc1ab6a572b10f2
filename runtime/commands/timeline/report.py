"""``vaemotion report``: write a timeline as one HTML page without network, script or other files.

Every text from the timeline passes ``escape``; the page's content security policy forbids everything else.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

import numpy as np

from runtime.commands.timeline.plot import (
    DARK,
    LIGHT,
    MOST_NARRATIONS,
    Palette,
    caption,
    draw,
    figure_bytes,
    shown_narrations,
)
from runtime.commands.timeline.read import Timeline, output_file, read_timeline
from runtime.messages import Narration, Notice, source_name
from vaemotion.contract.files import write_whole
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prompts import AROUSAL_WORDS, VALENCE_WORDS, level_word
from vaemotion.contract.terminal import tell
from vaemotion.contract.words import counted, duration_words, time_words

_MOST_EMOTIONS = 5
_WIDE_IN, _NARROW_IN = 9.6, 4.4  # the plot's widths on a computer and on a phone
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_UNKNOWN = "unknown, because the run did not end by itself"
_STYLE_FILE = Path(__file__).with_name("report.css")


def report(timeline_file: Path, out: Path | None) -> None:
    """Write a timeline's page to ``out`` (default: beside it, .html) and print its path.

    Raises TimelineError for a damaged timeline, UsageError for another ending of ``out``.
    """
    file = output_file(timeline_file, out, ".html")
    write_whole(file, page(read_timeline(timeline_file)).encode("utf-8", "replace"))
    tell(f"report: {file}")


def page(timeline: Timeline) -> str:
    """Return the page as HTML."""
    start = timeline.start
    title = f"{source_name(start.source)}, read by {start.bundle}" if start else "A run of unknown source"
    sections = (
        heading(timeline),
        _section("Summary", summary(timeline)),
        _section("Over time", plots(timeline)),
        _section("Narrations", narrations(timeline)),
        _section("Notices", notices(timeline)),
        _section("Latency", latency(timeline)),
        _section("Encodes and drops", counts(timeline)),
        _section("Engines and bundle", origin(timeline)),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # otherwise a browser requests one from the server
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE_FILE.read_text('utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}</section>\n"


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>\n' if kind else f"<p>{escape(text)}</p>\n"


Cell = str | int | float


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table that scrolls sideways by itself; numbers are right-aligned, floats with one digit."""

    def cell(value: Cell, kind: str = "td", as_number: bool = False) -> str:
        text = (
            f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        )
        number = ' class="number"' if as_number or not isinstance(value, str) else ""
        return f"<{kind}{number}>{escape(text)}</{kind}>"

    head = "".join(cell(name, "th", not isinstance(rows[0][i], str)) for i, name in enumerate(header))
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _bar(name: str, share: float, style_class: str = "") -> str:
    return (
        f'<div class="bar"><span>{escape(name)}</span><span class="track"><i class="{style_class}" '
        f'style="width:{100 * share:.1f}%"></i></span><span>{share:.0%}</span></div>\n'
    )


def heading(timeline: Timeline) -> str:
    """Return the heading: source, bundle, pace, duration, counts, and the reason of the run's end."""
    start, end = timeline.start, timeline.end
    duration = duration_words(timeline.duration_s)
    numbers = [counted(len(timeline.readings), "reading"), counted(len(timeline.narrations), "narration")]
    facts = [duration, *numbers]
    if start:
        facts = [f"read by {start.bundle}", f"pace {start.pace}", *facts]
    if end:
        ended = f"Started {end.started_at}, took {duration_words(end.wall_s)}. End of the run: {end.reason}."
    else:
        ended = (
            f"The run did not end by itself: its timeline stops after {duration} without an end record, "
            "so the process was killed or the machine lost power."
        )
    alarming = end is None or end.reason.startswith("failed")
    title = source_name(start.source) if start else "A run of unknown source"
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n{_paragraph(' · '.join(facts), 'muted')}"
        f"{_paragraph(ended, 'alert' if alarming else '')}</header>\n"
    )


def summary(timeline: Timeline) -> str:
    """Return mean valence and arousal in numbers and words, each path's share, the strongest emotions."""
    cards: list[str] = []
    for name, words in (("valence", VALENCE_WORDS), ("arousal", AROUSAL_WORDS)):
        mean, spread = timeline.mean(name), timeline.mean(f"{name}_sd")
        number = f"{mean:+.2f}".replace("-", "−")
        cards.append(
            f'<h3>Mean {name}</h3>\n<div class="big {name}">{number}</div>\n'
            + _paragraph(f"{level_word(mean, words)}; predicted spread ± {spread:.2f}")
        )
    paths = Counter(reading.path for reading in timeline.readings)
    names = {path: path if "-" in path else f"{path} only" for path in PATHS}
    bars = (_bar(name, paths[path] / len(timeline.readings), path) for path, name in names.items())
    cards.append(f"<h3>Path</h3>\n{''.join(bars)}")
    emotions = mean_emotions(timeline)
    strongest = sorted(emotions, key=lambda name: -emotions[name])[:_MOST_EMOTIONS]
    bars = "".join(_bar(name, emotions[name]) for name in strongest)
    cards.append(f"<h3>Strongest emotions, on average</h3>\n{bars or _paragraph('none in the readings')}")
    inside = "".join(f"<div>\n{card}</div>\n" for card in cards)
    return f'<div class="cards">\n{inside}</div>\n'


def mean_emotions(timeline: Timeline) -> dict[str, float]:
    """Return each emotion's mean share over all readings."""
    total: Counter[str] = Counter()
    for reading in timeline.readings:
        total.update(reading.emotions)
    return {name: value / len(timeline.readings) for name, value in total.items()}


def plots(timeline: Timeline) -> str:
    """Return the plot as data: URIs, of which the browser takes one: narrow or wide, dark or light."""

    def uri(width_in: float, palette: Palette) -> str:
        svg = figure_bytes(draw(timeline, width_in=width_in, palette=palette, texts=False), "svg")
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()

    narrow, dark = "(max-width: 44rem)", "(prefers-color-scheme: dark)"
    sources = "".join(
        f'<source media="{media}" srcset="{uri(width_in, palette)}">\n'
        for media, width_in, palette in (
            (f"{narrow} and {dark}", _NARROW_IN, DARK),
            (narrow, _NARROW_IN, LIGHT),
            (dark, _WIDE_IN, DARK),
        )
    )
    alternative = "Valence and arousal over time, with narrations and live modalities; the means stand above."
    return (
        f'<figure>\n<picture>\n{sources}<img alt="{alternative}" src="{uri(_WIDE_IN, LIGHT)}">\n</picture>\n'
        f"<figcaption>{escape(caption(timeline))}</figcaption>\n</figure>\n"
    )


def narrations(timeline: Timeline) -> str:
    """Return the numbered narrations, and where there are more, all of them folded away."""
    if not timeline.narrations:
        return _paragraph("There was no narration.", "muted")
    duration_s, shown = timeline.duration_s, shown_narrations(timeline)
    marked = "".join(_narration(n, duration_s, str(number)) for number, n in enumerate(shown, start=1))
    everything = ""
    if len(timeline.narrations) > MOST_NARRATIONS:
        lines = "".join(_narration(n, duration_s, "") for n in timeline.narrations)
        everything = _folded(f"All {len(timeline.narrations):,} narrations", lines)
    return f"<ol>\n{marked}</ol>\n{everything}"


def _narration(narration: Narration, duration_s: float, number: str) -> str:
    at, text = time_words(narration.about_s, duration_s), escape(narration.text)
    note = f"({narration.age_s:.1f} s later)"
    return f"<li><b>{number}</b><time>{at}</time><span>{text} <small>{note}</small></span></li>\n"


def _folded(title: str, lines: str) -> str:
    return f"<details>\n<summary>{escape(title)}</summary>\n<ul>\n{lines}</ul>\n</details>\n"


def notices(timeline: Timeline) -> str:
    """Return the run's notices, folded away where there are many."""

    def line(notice: Notice) -> str:
        at = time_words(notice.time_s, timeline.duration_s)
        return f"<li><b></b><time>{at}</time><span>{escape(notice.text)}</span></li>\n"

    lines = "".join(map(line, timeline.notices))
    if len(timeline.notices) > MOST_NARRATIONS:
        return _folded(f"All {len(timeline.notices):,} notices", lines)
    return f"<ul>\n{lines}</ul>\n" if lines else _paragraph("There were none.", "muted")


def latency(timeline: Timeline) -> str:
    """Return count, median, 95th percentile and maximum of each stage and of the readings, in ms."""
    rows: list[tuple[Cell, ...]] = []
    values = [reading.latency_ms for reading in timeline.readings if reading.latency_ms is not None]
    if values:
        quantiles = (float(q) for q in np.percentile(values, (50, 95, 100)))
        rows.append(("evidence → reading", len(values), *quantiles))
    for stage, times in (timeline.end.stages_ms if timeline.end else {}).items():
        count = int(times["count"]) if "count" in times else "–"
        rows.append((stage, count, *(times.get(name, "–") for name in ("p50", "p95", "max"))))
    if timeline.start and timeline.start.pace == "max":
        text = (
            "At pace max the clock is simulated: readings have no latency, "
            "and stages show the time that each one computed."
        )
    elif not values:
        text = "The readings carry no latency."
    else:
        text = "From the newest evidence to the published reading, and the time of each stage."
    text += "" if timeline.end else f" The stages' times are {_UNKNOWN}."
    return _paragraph(text, "muted") + (
        _table(("", "count", "p50 ms", "p95 ms", "max ms"), rows) if rows else ""
    )


def counts(timeline: Timeline) -> str:
    """Return the number of runs of each encoder, and the drops."""
    if timeline.end is None:
        return _paragraph(f"Both are {_UNKNOWN}.", "muted")
    end, seconds = timeline.end, max(timeline.end.time_s, 1e-9)
    encodes = [(name, count, count / seconds) for name, count in end.encodes.items()]
    text = (
        _table(("encoder", "runs", "per second"), encodes)
        if encodes
        else _paragraph("No encoder ran.", "muted")
    )
    dropped = [(name, count) for name, count in end.dropped.items() if count]
    return text + (_table(("dropped", "count"), dropped) if dropped else _paragraph("Nothing was dropped."))


def origin(timeline: Timeline) -> str:
    """Return the engines with the reasons for their choice, and the bundle's lineage."""
    if timeline.start is None:
        return _paragraph("Unknown: the timeline has no start record.", "muted")
    start = timeline.start
    engines = "".join(f"<li><span>{escape(engine)}</span></li>\n" for engine in start.engines)
    bundle = [("bundle", start.bundle), ("bundle sha256", start.bundle_sha256), ("vaemotion", start.version)]
    table = _table(("field", "value"), [*bundle, *flattened(start.lineage)])
    return f'<ul class="plain">\n{engines}</ul>\n{table}'


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested objects as rows such as ("tools › torch", "2.13.0")."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(cast(dict[str, Any], value), f"{prefix}{name} › ")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
