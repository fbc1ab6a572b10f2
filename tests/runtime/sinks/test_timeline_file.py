"""A timeline's file: one writer at a time, and nothing lost or torn when others rotate or copy it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from runtime.commands.timeline.read import read_timeline
from runtime.messages import Notice, Reading, Start
from runtime.sinks.jsonl import JsonLines
from tests.live_peers import until
from vaemotion.contract.errors import UserError

START = Start("tiny", "0" * 64, "camera and microphone", "real", ("vision_encoder: CPU",), {}, "0.1")
# Writes notices to a timeline until it is told to end, and one more.
WRITER = """
import select, sys
from runtime.messages import Notice, Start
from runtime.sinks.jsonl import JsonLines
sink = JsonLines(sys.argv[1], live=True)
sink.publish(Start("tiny", "0" * 64, "camera", "real", (), {}, "0.1"))
print("ready", flush=True)
k = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    sink.publish(Notice(float(k), "x" * (k % 300)))
    k += 1
sink.publish(Notice(float(k), "the last"))
"""
# Takes the timeline again and again, each time for 20 lines with its own mark, and rotates it meanwhile.
RIVAL = """
import sys
from runtime.messages import Notice, Start
from runtime.sinks.jsonl import JsonLines
from vaemotion.contract.errors import UserError
mark, rounds = sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
while rounds:
    try:
        sink = JsonLines(sys.argv[1], live=True, max_bytes=900, keep=500)
    except UserError as error:
        assert "is being written already" in str(error), error
        continue
    sink.publish(Start(mark, "0" * 64, "camera", "real", (), {}, "0.1"))
    for k in range(20):
        sink.publish(Notice(float(k), f"{mark} {rounds}"))
    sink.close()
    rounds -= 1
"""


def reading(time_s: float) -> Reading:
    return Reading(time_s, 0.1, -0.4, 0.1, 0.2, {"awe": 0.7, "fear": 0.3}, "visual", 0.0, None, 12.0)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=120)
    assert process.returncode == 0


def records(file: Path) -> list[dict[str, object]]:
    """Every line of a file as JSON: a hole, a torn line or two lines in one would raise."""
    content = file.read_bytes()
    assert content.endswith(b"\n") or not content
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("max_bytes", [None, 100_000])
def test_a_second_writer_is_refused_and_changes_nothing_until_the_first_is_killed(
    tmp_path: Path, max_bytes: int | None
) -> None:
    path = tmp_path / "timeline.jsonl"
    writer = start(WRITER, path)
    try:
        writer.send_signal(signal.SIGSTOP)
        before = path.read_bytes()
        with pytest.raises(UserError) as refusal:
            JsonLines(str(path), max_bytes=max_bytes)
        assert str(refusal.value) == (
            f"the timeline {path} is being written already; end the run that writes it, "
            "or give --out jsonl: another file"
        )
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == [path.name]
    finally:
        writer.kill()
        writer.communicate()
    sink = JsonLines(str(path), max_bytes=max_bytes)  # a killed run leaves no lock behind
    sink.publish(START)
    sink.close()
    assert len(records(path)) == 1
    assert path.with_name("timeline.jsonl.1").exists() == (max_bytes is not None)


def test_the_same_file_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "timeline")
    first = JsonLines(str(tmp_path / "timeline"))
    with pytest.raises(UserError, match="is being written already"):
        JsonLines(str(tmp_path / "link"))
    first.close()


def test_writers_that_compete_for_a_rotated_timeline_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    path, rounds, marks = tmp_path / "timeline", 8, "abc"
    rivals = [start(RIVAL, path, mark, rounds) for mark in marks]
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    for rival in rivals:
        end(rival)
    found: Counter[str] = Counter()
    for file in tmp_path.iterdir():
        first, *lines = records(file)
        assert first["type"] == "start"
        assert {str(line["text"]).split()[0] for line in lines} == {first["bundle"]}  # one writer a file
        found.update(str(line["text"]) for line in lines)
    assert found == {f"{mark} {k}": 20 for mark in marks for k in range(1, rounds + 1)}


def test_a_file_that_is_copied_and_emptied_by_others_has_no_hole_and_begins_with_the_start(
    tmp_path: Path,
) -> None:
    path = tmp_path / "timeline"
    sink = JsonLines(str(path), live=True)
    sink.publish(START)
    sink.publish(reading(0.0))
    shutil.copy(path, tmp_path / "copy")
    os.truncate(path, 0)
    sink.publish(reading(1.0))
    sink.close()
    timeline = read_timeline(path)
    assert timeline.start == START
    assert [found.time_s for found in timeline.readings] == [1.0]


def test_a_writer_whose_file_is_emptied_again_and_again_leaves_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    writer = start(WRITER, path)
    for _ in range(200):
        until(lambda: path.stat().st_size > 0, "a line", poll_s=0.001)
        os.truncate(path, 0)
    end(writer)
    assert records(path)[-1]["text"] == "the last"


@pytest.mark.parametrize("created", [True, False])
def test_a_file_that_is_moved_away_is_followed_by_a_new_one(tmp_path: Path, created: bool) -> None:
    path, moved = tmp_path / "timeline", tmp_path / "timeline-20261127"
    sink = JsonLines(str(path), live=True, max_bytes=10_000_000)
    sink.publish(START)
    times_s = iter(range(10_000_000))
    sink.publish(reading(next(times_s)))
    path.rename(moved)
    if created:
        path.touch()

    def has_arrived() -> bool:
        sink.publish(reading(next(times_s)))
        return path.exists() and path.stat().st_size > 0

    until(has_arrived, "a line in the new file")
    with pytest.raises(UserError, match="is being written already"):
        JsonLines(str(path))
    sink.close()
    old, new = read_timeline(moved), read_timeline(path)
    assert old.start == new.start == START
    together = [found.time_s for timeline in (old, new) for found in timeline.readings]
    assert together == list(range(next(times_s)))  # no line is lost


def test_a_strangers_file_in_the_place_of_the_timeline_is_left_alone(tmp_path: Path) -> None:
    path, moved = tmp_path / "timeline", tmp_path / "moved"
    sink = JsonLines(str(path), live=True)
    sink.publish(START)
    path.rename(moved)
    path.write_text("dear diary")
    looked_at_ns = path.stat().st_atime_ns

    def was_read() -> bool:
        sink.publish(Notice(1.0, "still here"))
        return path.stat().st_atime_ns > looked_at_ns or moved.stat().st_size > 200_000

    until(was_read, "a look at the stranger's file", poll_s=0.002)
    sink.publish(Notice(2.0, "and here"))
    sink.close()
    assert path.read_text() == "dear diary"
    assert records(moved)[-1]["text"] == "and here"


def test_a_link_to_a_timeline_stays_a_link_when_the_file_is_rotated(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "timeline"
    link.symlink_to(tmp_path / "disk" / "timeline")
    sink = JsonLines(str(link), max_bytes=900, keep=9)
    sink.publish(START)
    for k in range(10):
        sink.publish(reading(float(k)))
    sink.close()
    assert link.is_symlink()
    assert os.listdir(tmp_path / "disk") > ["timeline"]
    assert read_timeline(link).readings[-1].time_s == 9.0
