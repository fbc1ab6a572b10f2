"""``vaemotion report``: a timeline → one HTML page that needs nothing else: no network, no script, no second file.

Everything that comes from the timeline passes ``escape``; a content security policy in the page forbids the rest.
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

from runtime.messages import Narration, Notice
from runtime.plot import DARK, LIGHT, MOST_NARRATIONS, Colours, caption, draw, picture, shown_narrations
from runtime.timeline import (
    Timeline,
    counted,
    duration_words,
    moment_words,
    output_file,
    read_timeline,
    source_name,
    write_whole,
)
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prompts import AROUSAL_WORDS, VALENCE_WORDS, level_word

_MOST_EMOTIONS = 5
_WIDE_IN, _NARROW_IN = 9.6, 4.4  # the plot's widths on a desk and on a phone
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_UNKNOWN = "unknown, because the run did not end by itself"

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #22262e; --muted: #666b75; --rule: #e3e0d8;
  --valence: #0b7a75; --arousal: #c8443c; --audio: #7b5ea7; --visual: #c99320; --both: #4a5568; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --ink: #ebe8e1; --muted: #9ba1ab; --rule: #2e323a;
  --valence: #4fc4ba; --arousal: #ff8a73; --audio: #b39ddb; --visual: #e6b84f; --both: #a0aec0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.1rem 4rem; }
h1 { font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--rule); }
p { margin: .4rem 0; } .muted { color: var(--muted); } .alert { border-left: .3rem solid var(--arousal); padding-left: .8rem; }
.cards { display: grid; gap: 1.6rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
h3 { font-size: .95rem; font-weight: 600; margin: 0; } .big { font-size: 2rem; line-height: 1.2; font-weight: 700; }
.valence { color: var(--valence); } .arousal { color: var(--arousal); }
.bar { display: grid; grid-template-columns: 8rem 1fr 3rem; gap: .6rem; align-items: center; font-size: .92rem; }
.bar span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.track { height: .6rem; border-radius: .3rem; background: var(--rule); overflow: hidden; }
.track i { display: block; height: 100%; background: var(--both); } .track .audio { background: var(--audio); }
.track .visual { background: var(--visual); }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; } figcaption { font-size: .85rem; color: var(--muted); }
ol, ul { padding: 0; margin: 0; list-style: none; }
li { display: grid; grid-template-columns: auto 4.5rem 1fr; gap: .7rem; padding: .3rem 0; align-items: baseline; }
li b { min-width: 1.6rem; border-radius: .8rem; background: var(--ink); color: var(--paper); text-align: center; font-size: .8rem; line-height: 1.6rem; }
li b:empty { background: none; min-width: 0; } time, td { font-variant-numeric: tabular-nums; } time, small { color: var(--muted); }
.plain li { display: block; } .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--muted); font-weight: 600; } .number { text-align: right; } th, .number { white-space: nowrap; } summary { cursor: pointer; padding: .4rem 0; }
"""


def report(timeline_file: Path, out: Path | None) -> None:
    """``vaemotion report``: write a timeline's page to ``out`` (default: beside it, .html) and print where it is."""
    file = output_file(timeline_file, out, ".html")
    write_whole(file, page(read_timeline(timeline_file)).encode("utf-8", "replace"))
    print(f"report: {file}")


def page(timeline: Timeline) -> str:
    """The whole page, HTML."""
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
        '<link rel="icon" href="data:,">\n'  # or a browser asks the server for one
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}</section>\n"


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>\n' if kind else f"<p>{escape(text)}</p>\n"


Cell = str | int | float


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that scrolls sideways by itself; numbers are right-aligned, those with a point to one digit."""

    def cell(value: Cell, kind: str = "td", as_number: bool = False) -> str:
        text = (
            f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        )
        number = ' class="number"' if as_number or not isinstance(value, str) else ""
        return f"<{kind}{number}>{escape(text)}</{kind}>"

    head = "".join(cell(name, "th", not isinstance(rows[0][i], str)) for i, name in enumerate(header))
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def _bar(name: str, share: float, colour: str = "") -> str:
    return (
        f'<div class="bar"><span>{escape(name)}</span><span class="track"><i class="{colour}" '
        f'style="width:{100 * share:.1f}%"></i></span><span>{share:.0%}</span></div>\n'
    )


def heading(timeline: Timeline) -> str:
    """Bundle, source, pace, duration, and how the run ended."""
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
    """Mean valence and arousal in numbers and words, the share of each path, the strongest emotions."""
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
    """Each emotion's mean share over all readings."""
    total: Counter[str] = Counter()
    for reading in timeline.readings:
        total.update(reading.emotions)
    return {name: value / len(timeline.readings) for name, value in total.items()}


def plots(timeline: Timeline) -> str:
    """The plot as data: URIs, of which the browser takes one: narrow or wide, dark or light."""

    def uri(width_in: float, colours: Colours) -> str:
        svg = picture(draw(timeline, width_in=width_in, colours=colours, texts=False), "svg")
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()

    narrow, dark = "(max-width: 44rem)", "(prefers-color-scheme: dark)"
    sources = "".join(
        f'<source media="{media}" srcset="{uri(width_in, colours)}">\n'
        for media, width_in, colours in (
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
    """Those that are numbered in the plot, and where there are more, all of them folded away."""
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
    note = f"{narration.age_s:.1f} s later" + ("" if narration.complete else ", cut short")
    moment, text = moment_words(narration.about_s, duration_s), escape(narration.text)
    return f"<li><b>{number}</b><time>{moment}</time><span>{text} <small>({note})</small></span></li>\n"


def _folded(title: str, lines: str) -> str:
    return f"<details>\n<summary>{escape(title)}</summary>\n<ul>\n{lines}</ul>\n</details>\n"


def notices(timeline: Timeline) -> str:
    """What a technician should know, folded away where it is long."""

    def line(notice: Notice) -> str:
        moment = moment_words(notice.time_s, timeline.duration_s)
        return f"<li><b></b><time>{moment}</time><span>{escape(notice.text)}</span></li>\n"

    lines = "".join(map(line, timeline.notices))
    if len(timeline.notices) > MOST_NARRATIONS:
        return _folded(f"All {len(timeline.notices):,} notices", lines)
    return f"<ul>\n{lines}</ul>\n" if lines else _paragraph("There were none.", "muted")


def latency(timeline: Timeline) -> str:
    """Per stage and for the readings: how often, median, 95th percentile and longest, in milliseconds."""
    rows: list[tuple[Cell, ...]] = []
    values = [reading.latency_ms for reading in timeline.readings if reading.latency_ms is not None]
    if values:
        quantiles = (float(q) for q in np.percentile(values, (50, 95, 100)))
        rows.append(("evidence → reading", len(values), *quantiles))
    for stage, times in (timeline.end.stages_ms if timeline.end else {}).items():
        count = int(times["count"]) if "count" in times else "–"
        rows.append((stage, count, *(times.get(name, "–") for name in ("p50", "p95", "max"))))
    if timeline.start and timeline.start.pace == "max":
        text = "At pace max the clock is simulated: readings have no latency, and stages show what each one computed."
    elif not values:
        text = "The readings carry no latency."
    else:
        text = "From the newest evidence to the published reading, and what each stage took."
    text += "" if timeline.end else f" The stages' times are {_UNKNOWN}."
    return _paragraph(text, "muted") + (
        _table(("", "count", "p50 ms", "p95 ms", "max ms"), rows) if rows else ""
    )


def counts(timeline: Timeline) -> str:
    """How often each encoder ran, and what was dropped."""
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
    """The engines with their reasons, and where the bundle comes from."""
    if timeline.start is None:
        return _paragraph("Unknown: the timeline has no start record.", "muted")
    start = timeline.start
    engines = "".join(f"<li><span>{escape(engine)}</span></li>\n" for engine in start.engines)
    bundle = [("bundle", start.bundle), ("bundle sha256", start.bundle_sha256), ("vaemotion", start.version)]
    table = _table(("field", "value"), [*bundle, *flattened(start.lineage)])
    return f'<ul class="plain">\n{engines}</ul>\n{table}'


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested objects as rows: ("tools › torch", "2.13.0")."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(cast(dict[str, Any], value), f"{prefix}{name} › ")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
