"""Timelines read back: complete, cut off, damaged, and from later versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.commands.timeline.read import (
    MOST_POINTS,
    Timeline,
    TimelineError,
    output_file,
    points_of,
    read_timeline,
)
from runtime.messages import End, Message, Narration, Notice, Reading, Start, record, source_name
from vaemotion.contract.errors import UsageError

START = Start(
    bundle="tiny",
    bundle_sha256="ab" * 32,
    source="/home/anna/art/red square.mp4",
    pace="real",
    engines=("vision_encoder: ONNX Runtime CPU, because TensorRT is not installed",),
    lineage={"tools": {"torch": "2.13.0"}, "checkpoint_config_sha256": "cd" * 32},
    version="0.1.0",
)
END = End(
    time_s=3.0,
    reason="source ended",
    started_at="2026-01-02T10:00:00+00:00",
    wall_s=3.2,
    readings=30,
    narrations=2,
    encodes={"vision_encoder": 30, "audio_encoder": 28},
    dropped={"frames": 4},
    stages_ms={"vision_encoder": {"count": 30, "p50": 12.1, "p95": 15.5, "max": 40.0}},
)
NARRATIONS = (
    Narration(time_s=1.2, about_s=1.0, text="a red square – stirring"),
    Narration(time_s=2.4, about_s=2.0, text="a bell"),
)
NOTICES = (Notice(time_s=0.4, text="audio came back"),)


def reading(time_s: float, path: str = "audio-visual", **changes: float | None) -> Reading:
    visual_age_s, audio_age_s = (0.04 if part in path else None for part in ("visual", "audio"))
    values = Reading(
        time_s, 0.5, -0.3, 0.1, 0.2, {"awe": 0.75, "fear": 0.25}, path, visual_age_s, audio_age_s, 40.0
    )
    return replace(values, **changes)


def readings(duration_s: float, hz: float = 10.0) -> tuple[Reading, ...]:
    times_s = np.arange(1, round(duration_s * hz) + 1) / hz
    return tuple(reading(float(t), valence=float(np.sin(t)), arousal=float(np.cos(t / 2))) for t in times_s)


def timeline_of(duration_s: float = 3.0, hz: float = 10.0, **changes: object) -> Timeline:
    end = replace(END, time_s=duration_s)
    whole = Timeline(START, readings(duration_s, hz), NARRATIONS, NOTICES, end)
    return replace(whole, **changes)


def messages_of(timeline: Timeline) -> list[Message]:
    middle = sorted((*timeline.readings, *timeline.narrations, *timeline.notices), key=lambda m: m.time_s)
    return [m for m in (timeline.start, *middle, timeline.end) if m is not None]


def write(file: Path, messages: Sequence[Message]) -> Path:
    file.write_text("".join(json.dumps(record(message)) + "\n" for message in messages))
    return file


def test_a_runs_timeline_is_read_back_completely(tmp_path: Path) -> None:
    timeline = timeline_of()
    assert read_timeline(write(tmp_path / "run.jsonl", messages_of(timeline))) == timeline


@pytest.mark.parametrize(("complete", "text"), [(True, "a bell"), (False, "a bell …")])
def test_a_narration_that_an_earlier_version_cut_shows_it(tmp_path: Path, complete: bool, text: str) -> None:
    file = write(tmp_path / "run.jsonl", [START, *readings(1.0)])
    written = {**record(Narration(0.9, 0.5, "a bell ")), "complete": complete}
    with file.open("a") as stream:
        stream.write(json.dumps(written) + "\n")
    [said] = read_timeline(file).narrations
    assert (said.time_s, said.about_s, said.text.rstrip()) == (0.9, 0.5, text)


def test_a_killed_run_is_a_timeline_without_an_end(tmp_path: Path) -> None:
    timeline = timeline_of(end=None)
    back = read_timeline(write(tmp_path / "run.jsonl", messages_of(timeline)))
    assert back == timeline
    assert back.duration_s == 3.0


@pytest.mark.parametrize("removed", [1, 2, 40, 200])
def test_a_last_line_that_was_cut_off_is_left_out_alone(tmp_path: Path, removed: int) -> None:
    file = write(tmp_path / "run.jsonl", [START, *readings(1.0)])
    content = file.read_bytes()
    assert removed < len(content.splitlines()[-1])
    file.write_bytes(content[:-removed])
    kept = 10 if removed == 1 else 9  # without its line feed alone, the last line is still complete
    assert read_timeline(file).readings == readings(1.0)[:kept]


@pytest.mark.parametrize("tail", [b"\0\0\0\0", '{"type": "notice", "text": "é'.encode()[:-1]])
def test_a_tail_damaged_by_a_power_cut_is_ignored(tmp_path: Path, tail: bytes) -> None:
    file = write(tmp_path / "run.jsonl", [START, *readings(1.0)])
    file.write_bytes(file.read_bytes() + tail)
    assert read_timeline(file).readings == readings(1.0)


@pytest.mark.parametrize("number", [1, 5, 12])
def test_any_other_damaged_line_is_named_by_its_number(tmp_path: Path, number: int) -> None:
    file = write(tmp_path / "run.jsonl", [START, *readings(1.0), replace(END, time_s=1.0)])
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:30] + b"\n"
    file.write_bytes(b"".join(lines))
    with pytest.raises(TimelineError, match=rf"run\.jsonl line {number}: not JSON"):
        read_timeline(file)


DAMAGES: dict[str, tuple[dict[str, object] | list[int], str]] = {
    "no object": ([1], "not a JSON object"),
    "no type": ({"time_s": 1}, "field 'type' is missing"),
    "a field is missing": ({"type": "notice", "time_s": 1}, "field 'text' is missing"),
    "a text for a number": (
        {"type": "notice", "time_s": "1", "text": ""},
        "field 'time_s' must be a finite number, got '1'",
    ),
    "true for a number": (
        {"type": "notice", "time_s": True, "text": ""},
        "'time_s' must be a finite number, got True",
    ),
    "no number": ({"type": "notice", "time_s": float("nan"), "text": ""}, "must be a finite number, got nan"),
    "too large": ({"type": "notice", "time_s": 10**400, "text": ""}, "must be a finite number"),
    "a number for a text": ({"type": "notice", "time_s": 1, "text": 3}, "field 'text' must be a text, got 3"),
    "an unknown path": (
        {**record(reading(1.0)), "path": "smell"},
        "one of audio, visual, audio-visual, got 'smell'",
    ),
    "emotions are no object": (
        {**record(reading(1.0)), "emotions": [1]},
        r"field 'emotions' must be an object, got \[1\]",
    ),
    "another schema": (
        {**record(START), "schema": 7, "version": "9.1"},
        "vaemotion 9.1 wrote schema 7, this version reads schema 1",
    ),
    "two runs": (record(START), "a second run starts here"),
}


@pytest.mark.parametrize(("line", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_a_record_that_is_not_right_is_told_in_one_sentence(
    tmp_path: Path, line: dict[str, object] | list[int], sentence: str
) -> None:
    first = [] if isinstance(line, dict) and line.get("schema") == 7 else [START]
    file = write(tmp_path / "run.jsonl", [*first, *readings(1.0)])
    number = len(first) + 11
    file.write_text(file.read_text() + json.dumps(line) + "\n")
    with pytest.raises(TimelineError, match=f"line {number}: .*{sentence}") as caught:
        read_timeline(file)
    assert "\n" not in str(caught.value)


def test_additions_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    file = write(tmp_path / "run.jsonl", [START])
    later = [{"type": "heartbeat", "beats": 3}, {**record(reading(0.1)), "mood": "blue"}]
    file.write_text(file.read_text() + "".join(json.dumps(line) + "\n" for line in later))
    assert read_timeline(file).readings == (reading(0.1),)


def test_a_timeline_without_a_reading_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TimelineError, match="has no reading in its 2 line"):
        read_timeline(write(tmp_path / "run.jsonl", [START, END]))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(TimelineError, match="has no reading"):
        read_timeline(tmp_path / "empty.jsonl")


def test_a_missing_file_and_a_folder_are_plain_sentences(tmp_path: Path) -> None:
    with pytest.raises(TimelineError, match=r"none\.jsonl does not exist"):
        read_timeline(tmp_path / "none.jsonl")
    with pytest.raises(TimelineError, match="cannot be read"):
        read_timeline(tmp_path)


def test_half_a_surrogate_pair_can_still_be_written_on(tmp_path: Path) -> None:
    narration = replace(NARRATIONS[0], text="red \ud83d square")
    back = read_timeline(write(tmp_path / "run.jsonl", [START, reading(1.0), narration]))
    assert back.narrations[0].text == r"red \ud83d square"


def test_few_readings_are_points_of_their_own() -> None:
    points = points_of(timeline_of(3.0))
    np.testing.assert_allclose(points.time_s, [r.time_s for r in readings(3.0)])
    np.testing.assert_allclose(points.valence, [r.valence for r in readings(3.0)])
    np.testing.assert_allclose(points.valence_sd, 0.1)
    assert points.bin_s is None


def test_many_readings_become_means_with_the_spread_of_the_mixture() -> None:
    flicker = tuple(reading(k / 10, valence=0.5 * (-1) ** k, path="visual") for k in range(60_000))
    points = points_of(timeline_of(6000.0, readings=flicker))
    assert len(points.time_s) == MOST_POINTS
    assert points.bin_s == pytest.approx(10.0, rel=1e-3)
    np.testing.assert_allclose(points.valence, 0, atol=0.01)
    np.testing.assert_allclose(points.valence_sd, np.hypot(0.5, 0.1), rtol=1e-3)
    np.testing.assert_allclose(points.arousal_sd, 0.2)
    assert points.visual.all()
    assert not points.audio.any()


def test_a_sources_name_hides_folders_and_passwords() -> None:
    assert source_name("/home/anna/red square.mp4") == "red square.mp4"
    assert source_name("rtsp://anna:secret@10.0.0.2/live") == "rtsp://10.0.0.2/…"
    assert source_name("camera 0 and microphone") == "camera 0 and microphone"


def test_a_plot_goes_beside_its_timeline_and_never_over_it(tmp_path: Path) -> None:
    assert output_file(tmp_path / "run.jsonl", None, ".png") == tmp_path / "run.png"
    with pytest.raises(UsageError, match=r"--out must name a file that ends in \.png, got .*run\.jsonl"):
        output_file(tmp_path / "run.jsonl", tmp_path / "run.jsonl", ".png")
    with pytest.raises(UsageError, match="is the timeline itself"):
        output_file(tmp_path / "run.png", None, ".png")
