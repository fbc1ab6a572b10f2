"""``vaemotion report``: self-contained, harmless for any timeline, and right in its numbers."""

from __future__ import annotations

import base64
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from runtime.commands.timeline.read import Timeline, TimelineError
from runtime.commands.timeline.report import flattened, page, report
from runtime.messages import End, Narration, Notice, Start
from tests.runtime.commands.timeline.test_read import END, START, messages_of, reading, timeline_of, write
from vaemotion.contract.errors import UsageError

VOID = {"meta", "link", "img", "source", "br"}
REFERENCES = {
    "src",
    "srcset",
    "href",
    "action",
    "data",
    "poster",
    "background",
    "cite",
    "xlink:href",
    "formaction",
}


class Page(HTMLParser):
    """A page parsed as a browser does: balanced tags, attributes, and the text outside of the style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_page_appears_beside_the_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "run.jsonl", messages_of(timeline_of()))
    report(file, None)
    assert "red square.mp4" in Page((tmp_path / "run.html").read_text(encoding="utf-8")).text
    assert capsys.readouterr().out == f"report: {tmp_path / 'run.html'}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.html", "run.jsonl"]


def test_a_damaged_timeline_or_another_ending_leaves_no_page(tmp_path: Path) -> None:
    file = write(tmp_path / "run.jsonl", [START])
    with pytest.raises(TimelineError, match="no reading"):
        report(file, None)
    with pytest.raises(UsageError, match=r"ends in \.html, got .*page\.txt"):
        report(file, tmp_path / "page.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["run.jsonl"]


def test_the_page_requests_nothing() -> None:
    html = page(timeline_of())
    read = Page(html)
    references = [value for name, value in read.attributes if name in REFERENCES]
    assert len(references) >= 5
    assert all(value.startswith("data:") for value in references)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    assert not re.search(
        r"https?://|url\(|@import|//[a-z0-9.-]+/", html.replace("data:image/svg+xml;base64,", "")
    )
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in read.attributes


def test_the_plot_is_embedded_wide_and_narrow_in_light_and_dark() -> None:
    read = Page(page(timeline_of()))
    images = [value for name, value in read.attributes if name in ("src", "srcset")]
    svgs = [base64.b64decode(image.partition("base64,")[2]).decode() for image in images]
    assert len(set(svgs)) == 4
    assert all("<svg" in svg for svg in svgs)
    assert sorted(svg.count("#16181d") > 0 for svg in svgs) == [False, False, True, True]  # dark paper
    media = [value for name, value in read.attributes if name == "media"]
    assert [("max-width" in m, "dark" in m) for m in media] == [(True, True), (True, False), (False, True)]


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;</style></title><!--"


def poisoned(message: Any) -> Any:
    """Return a message with ``EVIL`` in each of its texts, keys of objects included."""

    def poison(value: Any) -> Any:
        if isinstance(value, str):
            return f"{EVIL} {value}"
        if isinstance(value, dict):
            return {poison(key): poison(inner) for key, inner in value.items()}
        return tuple(poison(inner) for inner in value) if isinstance(value, tuple) else value

    stages = {"stages_ms"} if isinstance(message, End) else set()  # its inner names are our own
    values = {f.name: getattr(message, f.name) for f in fields(message)}
    changed = {name: poison(value) for name, value in values.items() if name not in stages | {"path"}}
    if stages:
        changed["stages_ms"] = {poison(stage): times for stage, times in values["stages_ms"].items()}
    return type(message)(**(values | changed))


def test_nothing_from_a_timeline_becomes_markup() -> None:
    plain = timeline_of()
    evil = Timeline(
        poisoned(plain.start),
        tuple(poisoned(r) for r in plain.readings),
        tuple(poisoned(n) for n in plain.narrations),
        tuple(poisoned(n) for n in plain.notices),
        poisoned(plain.end),
    )
    read, expected = Page(page(evil)), Page(page(plain))
    assert read.tags == expected.tags
    assert [name for name, _ in read.attributes] == [name for name, _ in expected.attributes]
    # Source, bundle, pace, end, start, 2 emotions, 2 narrations, notice, stage, 2 encoders, drop, engine, …
    assert read.text.count("<script>alert(1)</script>") > 18


def test_the_heading_says_what_ran_and_how_it_ended() -> None:
    text = Page(page(timeline_of())).text
    assert "red square.mp4 read by tiny · pace real · 3.0 s · 30 readings · 2 narrations" in text
    assert "Started 2026-01-02T10:00:00+00:00, took 3.2 s. End of the run: source ended." in text
    assert "/home/anna" not in text


def test_the_page_of_a_killed_run_says_so() -> None:
    read = Page(page(timeline_of(end=None)))
    assert "The run did not end by itself: its timeline stops after 3.0 s" in read.text
    assert ("class", "alert") in read.attributes
    assert "Nothing was dropped" not in read.text
    assert "unknown, because the run did not end by itself" in read.text


def test_a_failed_run_stands_out_and_one_that_ended_does_not() -> None:
    failed = Page(page(timeline_of(end=replace(END, reason="failed: the microphone is gone"))))
    assert "End of the run: failed: the microphone is gone." in failed.text
    assert ("class", "alert") in failed.attributes
    assert ("class", "alert") not in Page(page(timeline_of())).attributes


def test_the_summary_has_means_words_paths_and_the_strongest_emotions() -> None:
    mixed = tuple(
        reading(k / 10, path, valence=0.7, arousal=-0.5, emotions={"awe": 0.6, "fear": 0.1, "anger": 0.3})
        for k, path in enumerate(["audio"] * 2 + ["visual"] * 3 + ["audio-visual"] * 5, start=1)
    )
    text = Page(page(timeline_of(1.0, readings=mixed))).text
    assert "Mean valence +0.70 very pleasant; predicted spread ± 0.10" in text
    assert "Mean arousal −0.50 calm; predicted spread ± 0.20" in text
    assert "audio only 20% visual only 30% audio-visual 50%" in text
    assert "on average awe 60% anger 30% fear 10%" in text


def test_narrations_stand_with_their_times_and_ages() -> None:
    text = Page(page(timeline_of())).text
    assert "1 1.0 s a red square – stirring (0.2 s later)" in text
    assert "2 2.0 s a bell (0.4 s later)" in text
    assert "There was no narration" in Page(page(timeline_of(narrations=()))).text


def test_many_narrations_and_notices_are_complete_but_folded_away() -> None:
    said = tuple(Narration(k + 0.5, float(k), f"sentence {k} ends") for k in range(40))
    heard = tuple(Notice(float(k), f"packet {k} damaged") for k in range(30))
    read = Page(page(timeline_of(40.0, narrations=said, notices=heard)))
    assert read.tags.count("details") == 2
    assert "All 40 narrations" in read.text
    assert all(f"sentence {k} ends" in read.text for k in range(40))
    assert all(f"packet {k} damaged" in read.text for k in range(30))
    assert read.text.count("sentence 0 ends") == 2  # numbered as in the plot, and in the whole list
    assert read.text.count("sentence 1 ends") == 1


def test_latencies_are_those_of_the_readings_and_stages() -> None:
    measured = tuple(reading(k / 10, latency_ms=float(k)) for k in range(1, 102))
    unmeasured = tuple(reading(11 + k / 10, latency_ms=None) for k in range(5))
    read = Page(page(timeline_of(12.0, readings=measured + unmeasured)))
    assert ["evidence → reading", "101", "51.0", "96.0", "101.0"] in read.cells
    assert ["vision_encoder", "30", "12.1", "15.5", "40.0"] in read.cells
    assert "simulated" not in read.text


def test_at_pace_max_the_page_says_that_the_clock_is_simulated() -> None:
    without = tuple(reading(k / 10, latency_ms=None) for k in range(1, 31))
    read = Page(page(timeline_of(start=replace(START, pace="max"), readings=without)))
    assert "At pace max the clock is simulated" in read.text
    assert not any("evidence" in cell for row in read.cells for cell in row)


def test_encodes_drops_engines_and_lineage_are_listed() -> None:
    read = Page(page(timeline_of()))
    assert ["audio_encoder", "28", "9.3"] in read.cells
    assert ["frames", "4"] in read.cells
    assert "vision_encoder: ONNX Runtime CPU, because TensorRT is not installed" in read.text
    assert ["bundle sha256", "ab" * 32] in read.cells
    assert ["tools › torch", "2.13.0"] in read.cells
    assert "Nothing was dropped" in Page(page(timeline_of(end=replace(END, dropped={"frames": 0})))).text


def test_a_timeline_without_its_first_and_last_line_still_makes_a_page() -> None:
    text = Page(page(timeline_of(start=None, end=None, narrations=(), notices=()))).text
    assert "A run of unknown source" in text
    assert "the timeline has no start record" in text


def test_a_password_in_a_source_stays_in_the_timeline() -> None:
    start: Start = replace(START, source="rtsp://anna:secret@10.0.0.2/live")
    assert "secret" not in page(timeline_of(start=start))


def test_a_lineage_is_laid_flat() -> None:
    lineage = {"a": {"b": {"c": 1}, "d": [1, "x"]}, "e": None, "f": "text"}
    assert list(flattened(lineage)) == [
        ("a › b › c", "1"),
        ("a › d", '[1, "x"]'),
        ("e", "null"),
        ("f", "text"),
    ]
