"""Rotated timelines: each file is whole, only the oldest is lost, and a full disk costs lines only."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.commands.timeline.read import read_timeline
from runtime.messages import Message, Notice, Reading, Start
from runtime.sinks.jsonl import JsonLines
from vaemotion.contract.errors import UsageError, UserError

START = Start("tiny", "0" * 64, "camera and microphone", "real", ("vision_encoder: CPU",), {}, "0.1")


def reading(time_s: float) -> Reading:
    return Reading(time_s, 0.1, -0.4, 0.1, 0.2, {"awe": 0.7, "fear": 0.3}, "visual", 0.0, None, 12.0)


def files(path: Path) -> list[Path]:
    """Return a timeline's files, oldest first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: -int(file.suffix[1:]))
    return [*older, path]


def losses(sink: JsonLines, messages: Iterable[Message]) -> int:
    """Publish messages as the outbox of a live run does, and return how many could not be written."""
    lost = 0
    for message in messages:
        try:
            sink.publish(message)
        except OSError:
            lost += 1
    return lost


@contextlib.contextmanager
def full_at(limit_bytes: int) -> Generator[None]:
    """Limit the size of files, as a full disk does: a write is cut short there, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=200), max_size=60),
    max_bytes=st.integers(1, 4000),
    keep=st.integers(1, 4),
    runs=st.integers(1, 2),
)
def test_the_files_hold_the_end_of_the_written_lines(
    texts: list[str], max_bytes: int, keep: int, runs: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rotation") / "timeline"
    plain = path.with_name("plain")
    written: list[bytes] = []
    for run in range(runs):
        messages: list[Message] = [Notice(k / 10 + run, text) for k, text in enumerate(texts)]
        for sink in (JsonLines(str(path), max_bytes=max_bytes, keep=keep), JsonLines(str(plain))):
            for message in (START, *messages):
                sink.publish(message)
            sink.close()
        start, *lines = plain.read_bytes().splitlines(keepends=True)
        written += lines
    plain.unlink()
    found = files(path)
    assert len(found) <= keep + 1
    remaining: list[bytes] = []
    for file in found:
        first, *lines = file.read_bytes().splitlines(keepends=True)
        assert first == start
        assert len(lines) <= 1 or file.stat().st_size <= max_bytes
        remaining += lines
    assert remaining == written[len(written) - len(remaining) :]
    # Lines are lost only where no file could be added.
    assert len(found) == keep + 1 or remaining == written


def test_each_file_is_a_timeline_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    sink = JsonLines(str(path), max_bytes=2000, keep=3)
    for message in (START, *(reading(k / 10) for k in range(100))):
        sink.publish(message)
    sink.close()
    assert [file.name for file in files(path)] == [f"timeline.jsonl{end}" for end in (".3", ".2", ".1", "")]
    times: list[float] = []
    for file in files(path):
        timeline = read_timeline(file)
        assert timeline.start == START
        times += [found.time_s for found in timeline.readings]
    assert times == [k / 10 for k in range(100 - len(times), 100)]
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in files(path))  # and no temporary one


def test_a_new_run_keeps_the_timeline_of_the_run_before_where_there_is_rotation(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    for run in range(3):
        sink = JsonLines(str(path), max_bytes=100_000, keep=2)
        sink.publish(START)
        sink.publish(reading(float(run)))
        sink.close()
    assert [read_timeline(file).readings[0].time_s for file in files(path)] == [0.0, 1.0, 2.0]
    JsonLines(str(path)).close()
    assert path.read_bytes() == b""  # that of a file is replaced


def test_a_live_run_without_rotation_keeps_the_timeline_of_every_run_before(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    for run in range(8):
        sink = JsonLines(str(path), live=True)
        assert losses(sink, (START, reading(float(run)))) == 0
        sink.close()
    assert [read_timeline(file).readings[0].time_s for file in files(path)] == list(range(8))


def test_a_full_disk_costs_counted_lines_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    sink = JsonLines(str(path), live=True, max_bytes=1_000_000)
    sink.publish(START)
    sink.publish(reading(0.0))
    with full_at(path.stat().st_size + 50):
        assert losses(sink, (reading(float(k)) for k in range(1, 8))) == 7
    sink.publish(reading(8.0))
    sink.close()
    assert [found.time_s for found in read_timeline(path).readings] == [0.0, 8.0]


def test_a_disk_that_is_full_from_the_first_line_on_still_gives_a_timeline_later(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    with full_at(20):
        sink = JsonLines(str(path), live=True, max_bytes=1500, keep=2)
        assert losses(sink, (START, reading(0.0))) == 2
    assert path.read_bytes() == b""
    assert losses(sink, (reading(float(k)) for k in range(1, 12))) == 0
    with full_at(20):  # rotation finds no room for the new file
        assert losses(sink, (reading(float(k)) for k in range(12, 30))) == 18
    sink.publish(reading(30.0))
    sink.close()
    found = [timeline for file in files(path) if (timeline := read_timeline(file))]
    assert all(timeline.start == START for timeline in found)
    assert [reading.time_s for timeline in found for reading in timeline.readings][-2:] == [11.0, 30.0]


def test_a_full_device_is_not_rotated_and_drops_or_fails_as_configured() -> None:
    device = os.stat("/dev/full").st_rdev
    sink = JsonLines("/dev/full", live=True, max_bytes=10, keep=1)
    assert losses(sink, (reading(float(k)) for k in range(3))) == 3
    sink.close()
    assert os.stat("/dev/full").st_rdev == device
    with pytest.raises(UserError, match="No space left"):
        JsonLines("/dev/full").publish(reading(0.0))


def test_a_removed_file_comes_back_with_the_next_rotation(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    sink = JsonLines(str(path), max_bytes=900, keep=2)
    sink.publish(START)
    path.unlink()
    for k in range(10):
        sink.publish(reading(float(k)))
    sink.close()
    assert read_timeline(path).readings[-1].time_s == 9.0


def test_another_file_is_not_rotated_away(tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear diary")
    with pytest.raises(UsageError, match="is not a timeline"):
        JsonLines(str(tmp_path / "diary"), max_bytes=100)
    assert os.listdir(tmp_path) == ["diary"]
