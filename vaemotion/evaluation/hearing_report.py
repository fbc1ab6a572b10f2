"""The hearing report on disk: ``hearing.json``, ``hearing.md``, ``hearing.html`` and plots.

The page needs nothing else: no network, no script, no second file. Markdown and page are made of the same sections.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from vaemotion.contract.front_end import SILENCE_RMS
from vaemotion.evaluation.hearing_alignment import COLOUR_WORDS, RETRIEVED, SCALES, SHAPE_CLASS, SHAPE_WORDS
from vaemotion.evaluation.hearing_verdict import HearingReport, Rule
from vaemotion.evaluation.report import table
from vaemotion.evaluation.rows import Estimate

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0; background: #fbfaf7; color: #22262e; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 62rem; margin: 0 auto; padding: 1.6rem 1.1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; } .scroll { overflow-x: auto; } img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid #e3e0d8; overflow-wrap: normal; }
th { color: #666b75; } td.passed { color: #1d6b3a; } td.failed { color: #b02a22; font-weight: 600; } td.untested { color: #666b75; }
"""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A plot's file name, and what it shows in words."""

    file: str
    shows: str


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it in order: paragraphs, tables, plots."""

    title: str
    parts: tuple[str | Table | Picture, ...]


def write_hearing_report(report: HearingReport, out: Path) -> None:
    """All files of the report, into ``out``; each is whole under its name."""
    from vaemotion.evaluation.hearing_plots import pictures

    plots = pictures(report)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "hearing.json", json.dumps(asdict(report), indent=2, allow_nan=False).encode() + b"\n")
    for name, png in plots.items():
        _write(out / name, png)
    _write(out / "hearing.md", (markdown(report) + "\n").encode())
    _write(out / "hearing.html", page(report, plots).encode())


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def sections(report: HearingReport) -> tuple[Section, ...]:
    """The report's content, in order."""
    return (
        Section(
            "Verdict",
            (
                report.verdict,
                _rules(report.rules, "rule"),
                _rules(report.targets, "target, beside the verdict"),
            ),
        ),
        Section("What is named from sound alone", _recognised(report)),
        Section("Do sound and sight of one clip lead to the same answers?", _retrieved(report)),
        Section("The sight of one class with the sound of another", _followed(report)),
        Section("Does sight leak into answers about sound?", _leaked(report)),
        Section("How it was measured", _measured(report)),
    )


def _rules(rules: Sequence[Rule], head: str) -> Table:
    return Table((head, "outcome", "found"), tuple((rule.text, rule.outcome, rule.found) for rule in rules))


def _recognised(report: HearingReport) -> tuple[str | Table | Picture, ...]:
    parts: list[str | Table | Picture] = [
        Picture("conditions.png", "Accuracy of every condition with 95 % intervals, and chance")
    ]
    for number, found in enumerate(report.recognised):
        parts.append(
            f"{found.material[0].upper()}{found.material[1:]}: {found.clips} clips, {found.windows} windows, {len(found.options)} classes, chance "
            f"{found.chance:.3f}. Question “What is this?”, the class with the highest mean token log-probability."
        )
        rows = (
            (c.name, c.kind, "–" if c.accuracy is None else shown(c.accuracy), c.note)
            for c in found.conditions
        )
        parts.append(Table(("condition", "kind", "accuracy", ""), tuple(rows)))
        parts.append(
            Picture(confusion_file(number), f"What the model names for which class: {found.material}")
        )
    return tuple(parts)


def confusion_file(number: int) -> str:
    """Name of the confusion matrix of the first or second material."""
    return ("confusion-procedural.png", "confusion-recordings.png")[number]


def _retrieved(report: HearingReport) -> tuple[str | Table | Picture, ...]:
    asked = ", ".join(f"“{question}” ({len(options)} answers)" for question, options in SCALES)
    text = (
        "Sound and sight share the language model's space, but nothing trains their pooled tokens to match: stage 1 makes the answers "
        f"alike. So clips are ranked by the Jensen-Shannon divergence between the answers' distributions, summed over {asked}; "
        "a distribution is the softmax of the options' mean token log-probabilities. By cosine of the tokens' means, and by a perfect "
        "naming of the class and nothing else, the same is given to compare. Equally near clips stand in any order."
    )
    rows = tuple(
        (r.name, *(f"{shown(r.recall[k])}, chance {r.chance(k):.3f}" for k in RETRIEVED))
        for r in report.retrieved
    )
    return text, Table((f"among {report.retrieved[0].clips} clips", *(f"R@{k}" for k in RETRIEVED)), rows)


def _followed(report: HearingReport) -> tuple[str | Table | Picture, ...]:
    found = report.followed
    text = (
        "[V; A] with the sound of a clip of another class. Stage 1 teaches the model to answer from both as its own sight alone "
        "would, so following sight is what was taught; sound that is followed disturbs sight."
    )
    rows = (
        ("names the class seen (follows sight)", shown(found.sight)),
        ("names the class heard (follows sound)", shown(found.sound)),
        ("names neither", shown(found.neither)),
        ("for comparison, accuracy from sight alone", shown(found.sight_alone)),
        ("for comparison, accuracy from sight with its own sound", shown(found.together)),
    )
    return text, Table(("answer", "share"), rows), Picture("follow.png", "Whom swapped pairs follow")


def _leaked(report: HearingReport) -> tuple[str | Table | Picture, ...]:
    text = (
        "Greedy answers from sound alone to every standard question that sound can answer: the share that holds a colour or shape "
        "word. Nobody can hear those, and only answers to questions that are audible are distilled."
    )
    rows = tuple(
        (row.material, row.question, row.answers, shown(row.rate), "; ".join(row.examples) or "–")
        for row in report.leaked
    )
    named = tuple(
        (s.material, s.answers, "–" if s.rate is None else shown(s.rate)) for s in report.shape_class
    )
    words = f"Colour words: {', '.join(sorted(COLOUR_WORDS))}. Shape words: {', '.join(sorted(SHAPE_WORDS))}."
    also = f"“{SHAPE_CLASS}” is the name of a class and no leak; how often it is said of a clip of another class:"
    named_table = Table(("material", "answers", f"holds “{SHAPE_CLASS}”"), named)
    return (
        text,
        Table(("material", "question", "answers", "rate", "examples"), rows),
        also,
        named_table,
        words,
    )


def _measured(report: HearingReport) -> tuple[str | Table | Picture, ...]:
    made, origin = report.bootstrap, report.origin
    works = (
        f"Procedural works: {origin['works']} of split {origin['split']} (seed {origin['seed']}), which nothing trained on, one window "
        f"each. The probes learn from {origin['probe_works']} works of split train that no stage streams."
    )
    recordings = (
        "Recordings: a recording's windows are spread evenly, about half a window apart, the last ends with it; windows "
        f"below {20 * math.log10(SILENCE_RMS):.0f} dBFS RMS are left out where there are others; scores are averaged over the rest."
    )
    intervals = f"Brackets: 95 % bootstrap intervals over works and recordings, {made.resamples} resamples, seed {made.seed}."
    adapter = (
        "The checkpoint is a complete one: what stage 1 left is measured, without the EmoAdapter, through which its questions about "
        "emotion would read on the device."
    )
    rows = tuple((key.replace("_", " "), json.dumps(value)) for key, value in origin.items())
    parts = [
        works,
        recordings,
        _matched(report),
        adapter if origin.get("complete_checkpoint") else "",
        intervals,
    ]
    return (*filter(None, parts), Table(("", ""), rows))


def _matched(report: HearingReport) -> str:
    origin = report.origin
    rule = (
        "No label of a sound is ever a target of stage 1. But where a recording was paired with pictures of its class (matched pairs), "
        "the recording's class chose the teacher's pictures, so that a label stands behind what was learnt from it."
    )
    if not origin.get("stage_1_recordings"):
        return f"{rule} Stage 1 of this checkpoint heard no recordings, as far as its lineage tells."
    told = f"{rule} Stage 1 of this checkpoint heard {origin['stage_1_recordings']} recordings in this way."
    if origin.get("recordings_sha256") in (None, origin.get("stage_1_recordings_sha256")):
        return told
    return f"{told} They are of another manifest than the one measured here, so that nothing here proves that none is in both."


def shown(estimate: Estimate) -> str:
    """For example "0.812 [0.790, 0.831]"."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _title(report: HearingReport) -> str:
    return f"Does {Path(str(report.origin.get('model', 'the model'))).name} hear?"


def markdown(report: HearingReport) -> str:
    """The report as Markdown; plots are named, and lie beside it."""

    def part(value: str | Table | Picture) -> str:
        if isinstance(value, Table):
            return table(value.head, value.rows)
        return f"![{value.shows}]({value.file})" if isinstance(value, Picture) else value

    blocks = [f"# {_title(report)}"]
    for section in sections(report):
        blocks += [f"## {section.title}", *map(part, section.parts)]
    return "\n\n".join(blocks)


def page(report: HearingReport, plots: dict[str, bytes]) -> str:
    """The report as one page, its plots within."""

    def part(value: str | Table | Picture) -> str:
        if isinstance(value, Table):
            return _html_table(value)
        if isinstance(value, Picture):
            data = base64.b64encode(plots[value.file]).decode()
            return f'<img alt="{escape(value.shows)}" src="data:image/png;base64,{data}">\n'
        return f"<p>{escape(value)}</p>\n"

    body = "".join(
        f"<section>\n<h2>{escape(section.title)}</h2>\n{''.join(map(part, section.parts))}</section>\n"
        for section in sections(report)
    )
    title = escape(_title(report))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def _html_table(value: Table) -> str:
    kinds = {"passed": "passed", "failed": "failed", "not tested": "untested"}

    def cell(content: object) -> str:
        text = str(content)
        kind = f' class="{kinds[text]}"' if text in kinds else ""
        return f"<td{kind}>{escape(text)}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in value.head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in value.rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'
