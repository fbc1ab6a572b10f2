"""The hearing report as files: ``hearing.json``, ``hearing.md``, ``hearing.html`` and plots.

The page is self-contained: it needs no network, no script and no second file. Markdown and page have the same
sections.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from vaemotion.contract.files import write_whole
from vaemotion.contract.front_end import SILENCE_RMS
from vaemotion.contract.words import markdown_table
from vaemotion.evaluation.hearing.alignment import COLOR_WORDS, LEVELS, RETRIEVED, SHAPE_WORDS
from vaemotion.evaluation.hearing.material import MANIFEST, PROCEDURAL
from vaemotion.evaluation.hearing.verdict import HearingReport, Rule, confusion_file

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0; background: #fbfaf7; color: #22262e; font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 62rem; margin: 0 auto; padding: 1.6rem 1.1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; }
.scroll { overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.1rem .3rem 0;
  border-bottom: 1px solid #e3e0d8; overflow-wrap: normal; }
th { color: #666b75; }
td.passed { color: #1d6b3a; }
td.failed { color: #b02a22; font-weight: 600; }
td.untested { color: #666b75; }
"""


@dataclass(frozen=True)
class Table:
    """A table: rows of cells under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A plot: its file name, and a description."""

    file: str
    description: str


Part = str | Table | Plot  # of a section; a str is a paragraph


@dataclass(frozen=True)
class Section:
    """A section: a title, and paragraphs, tables and plots in order."""

    title: str
    parts: tuple[Part, ...]


def write_hearing_report(report: HearingReport, out: Path) -> None:
    """Write all files of the report into ``out``."""
    from vaemotion.evaluation.hearing.plots import draw_plots

    plots = draw_plots(report)
    write_whole(out / "hearing.json", json.dumps(asdict(report), indent=2, allow_nan=False) + "\n")
    for name, png in plots.items():
        write_whole(out / name, png)
    write_whole(out / "hearing.md", markdown(report) + "\n")
    write_whole(out / "hearing.html", page(report, plots))


def sections(report: HearingReport) -> tuple[Section, ...]:
    """Return the report's sections in order."""
    verdict = (
        report.verdict,
        _rules(report.rules, "rule"),
        _rules(report.targets, "target, not part of the verdict"),
    )
    return (
        Section("Verdict", verdict),
        Section("Recognition from sound alone", _recognition(report)),
        Section("Agreement of answers from sound and from sight of one clip", _retrieval(report)),
        Section("Sight of one class with the sound of another", _swapped_sound(report)),
        Section("Visual words in answers from sound alone", _leakage(report)),
        Section("Method", _method(report)),
    )


def _rules(rules: Sequence[Rule], head: str) -> Table:
    return Table((head, "outcome", "found"), tuple((rule.text, rule.outcome, rule.found) for rule in rules))


def _recognition(report: HearingReport) -> tuple[Part, ...]:
    parts: list[Part] = [
        Plot("conditions.png", "Accuracy of every condition with 95 % intervals, and chance")
    ]
    for found in report.recognised:
        parts.append(
            f"{found.material[0].upper()}{found.material[1:]}: {found.clips} clips, {found.windows} "
            f"windows, {len(found.options)} classes, chance {found.chance:.3f}. The question is "
            f"“{found.question}”; the answer is the class with the highest mean token log-probability."
        )
        rows = tuple((c.name, c.kind, c.accuracy or "–", c.note) for c in found.conditions)
        parts.append(Table(("condition", "kind", "accuracy", ""), rows))
        parts.append(Plot(confusion_file(found.kind), f"Confusion matrix: {found.material}"))
    return tuple(parts)


def _retrieval(report: HearingReport) -> tuple[Part, ...]:
    asked = ", ".join(f"“{question}” ({len(options)} answers)" for question, options in LEVELS)
    text = (
        "Audio and visual tokens share the language model's space, but no training matches their pooled "
        "tokens: stage 1 makes the answers alike. So clips are ranked by the Jensen-Shannon divergence of "
        f"the answers' distributions, summed over the question about content, {asked}. A distribution is the "
        "softmax of the options' mean token log-probabilities. For comparison, clips are also ranked by the "
        "cosine of mean tokens, and by the true class alone. Clips at equal distance are taken in random "
        "order."
    )
    parts: list[Part] = [text, *(f"Not measured: {each}." for each in report.not_measured)]
    for material in dict.fromkeys(way.material for way in report.retrieved):
        ways = [way for way in report.retrieved if way.material == material]
        rows = tuple(
            (way.name, *(f"{way.recall[k]}, chance {way.chance(k):.3f}" for k in RETRIEVED)) for way in ways
        )
        head = (f"{material}, among {ways[0].clips}", *(f"R@{k}" for k in RETRIEVED))
        parts.append(Table(head, rows))
    return tuple(parts)


def _swapped_sound(report: HearingReport) -> tuple[Part, ...]:
    text = (
        "[V; A] with the sound of a clip of another class. Stage 1 trains the model to answer from both as "
        "it answers from sight alone. So answers should follow sight; answers that follow the sound are a "
        "disturbance."
    )
    if not report.followed:
        return text, "Not measured: no material has enough clips with frames."
    names = {
        "sight": "names the class seen (follows sight)",
        "sound": "names the class heard (follows sound)",
        "neither": "names neither",
        "sight_alone": "for comparison, accuracy from sight alone",
        "together": "for comparison, accuracy from sight with its own sound",
    }
    rows = tuple(
        (name, *(getattr(found, field) for found in report.followed)) for field, name in names.items()
    )
    head = ("answer", *(f"share, {found.material}" for found in report.followed))
    return text, Table(head, rows), Plot("follow.png", "Classes that swapped pairs are named by")


def _leakage(report: HearingReport) -> tuple[Part, ...]:
    text = (
        "The share of greedy answers from sound alone that hold a color or shape word, for every standard "
        "question that sound can answer. Sound does not carry colors or shapes, and only answers to audible "
        "questions are distilled."
    )
    leaks = tuple(
        (row.material, row.question, row.answers, row.rate, "; ".join(row.examples) or "–")
        for row in report.leaked
    )
    words = f"Color words: {', '.join(sorted(COLOR_WORDS))}. Shape words: {', '.join(sorted(SHAPE_WORDS))}."
    parts: tuple[Part, ...] = (text, Table(("material", "question", "answers", "rate", "examples"), leaks))
    if report.visual_classes:
        also = (
            "Names of classes do not count. The share of those with such a word among clips of other classes:"
        )
        rows = tuple(
            (each.material, each.name, each.answers, each.rate or "–") for each in report.visual_classes
        )
        parts = (*parts, also, Table(("material", "class", "answers", "share that holds it"), rows))
    return (*parts, words)


def _method(report: HearingReport) -> tuple[Part, ...]:
    bootstrap, origin = report.bootstrap, report.origin
    kinds = {found.kind for found in report.recognised}
    works = (
        f"Procedural works: {origin['works']} of split {origin['split']} (seed {origin['seed']}), which no "
        f"stage trains on, one window each. The probes are fitted on {origin['probe_works']} works of split "
        "train that no stage trains on."
    )
    silence_dbfs = 20 * math.log10(SILENCE_RMS)
    clips = (
        "Clips of the manifest: a film is heard in one window, with its frames. A sound is heard in windows "
        "spread evenly, about half a window apart; the last ends with the sound. Windows below "
        f"{silence_dbfs:.0f} dBFS RMS are left out where there are others; scores are averaged over the rest."
    )
    adapter = (
        "The checkpoint is complete, but stage 1 alone is measured, without the EmoAdapter. On the device, "
        "questions about emotion are answered by the EmoAdapter."
    )
    intervals = (
        f"Brackets: 95 % bootstrap intervals over works, {bootstrap.resamples} resamples, "
        f"seed {bootstrap.seed}."
    )
    paragraphs = [*([works] if PROCEDURAL in kinds else []), *([clips] if MANIFEST in kinds else [])]
    paragraphs.append(_matched_pairs(report))
    paragraphs += [adapter] if origin.get("complete_checkpoint") else []
    rows = tuple((key.replace("_", " "), json.dumps(value)) for key, value in origin.items())
    return (*paragraphs, intervals, Table(("", ""), rows))


def _matched_pairs(report: HearingReport) -> str:
    """State the recordings that stage 1 trained on, as the checkpoint's lineage records them."""
    origin = report.origin
    rule = (
        "No label of a sound is ever a target of stage 1. But where a recording was paired with frames of "
        "its class (matched pairs), the recording's class chose the teacher's frames, so that training used "
        "that label."
    )
    if not origin.get("stage_1_recordings"):
        return f"{rule} Stage 1 of this checkpoint used no recordings, according to its lineage."
    text = f"{rule} Stage 1 of this checkpoint used {origin['stage_1_recordings']} recordings in this way."
    if origin.get("manifest_sha256") in (None, origin.get("stage_1_recordings_sha256")):
        return text
    return (
        f"{text} Their manifest is another one than the manifest measured here, so this report cannot rule "
        "out that a recording is in both."
    )


def _title(report: HearingReport) -> str:
    return f"Hearing report: {Path(str(report.origin.get('model', 'the model'))).name}"


def markdown(report: HearingReport) -> str:
    """Return the report as Markdown, with links to the plots beside it."""

    def part(value: Part) -> str:
        if isinstance(value, Table):
            return markdown_table(value.head, value.rows)
        return f"![{value.description}]({value.file})" if isinstance(value, Plot) else value

    blocks = [f"# {_title(report)}"]
    for section in sections(report):
        blocks += [f"## {section.title}", *map(part, section.parts)]
    return "\n\n".join(blocks)


def page(report: HearingReport, plots: dict[str, bytes]) -> str:
    """Return the report as one HTML page that contains the plots."""

    def part(value: Part) -> str:
        if isinstance(value, Table):
            return _html_table(value)
        if isinstance(value, Plot):
            data = base64.b64encode(plots[value.file]).decode()
            return f'<img alt="{escape(value.description)}" src="data:image/png;base64,{data}">\n'
        return f"<p>{escape(value)}</p>\n"

    body = "".join(
        f"<section>\n<h2>{escape(section.title)}</h2>\n{''.join(map(part, section.parts))}</section>\n"
        for section in sections(report)
    )
    title = escape(_title(report))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def _html_table(value: Table) -> str:
    kinds = {"passed": "passed", "failed": "failed", "not tested": "untested"}

    def cell(content: object) -> str:
        text = str(content)
        kind = f' class="{kinds[text]}"' if text in kinds else ""
        return f"<td{kind}>{escape(text)}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in value.head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in value.rows)
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>"
    return f'<div class="scroll"><table>\n{inside}\n</table></div>\n'
