"""A timeline in a pipe, a FIFO or a device: no reader, a slow one, one that goes away, and the next one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from runtime.messages import Message, Notice, Reading, Start
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.outbox import CAPACITY, Outbox
from runtime.sinks.stream import ReaderGone, descriptor_of
from vaemotion.contract.errors import UsageError, UserError

START = Start("tiny", "0" * 64, "camera and microphone", "real", ("vision_encoder: CPU",), {}, "0.1")


def reading(time_s: float) -> Reading:
    return Reading(time_s, 0.1, -0.4, 0.1, 0.2, {"awe": 0.7, "fear": 0.3}, "visual", 0.0, None, 12.0)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def pipe() -> Generator[tuple[int, int]]:
    """Make a pipe as the shell does for ``>(…)``; return its reading and its writing end."""
    ends = os.pipe()
    os.set_inheritable(ends[1], True)
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


class Reader:
    """Reads a stream on a thread of its own until it ends."""

    def __init__(self, file: str | int) -> None:
        self.content = b""
        self._file = file
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with open(self._file, "rb") as file:
            self.content = file.read()

    def records(self) -> list[dict[str, Any]]:
        """Every line that came, once the stream has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.content.endswith(b"\n")
        return [json.loads(line) for line in self.content.splitlines()]


def publish(sink: JsonLines, *messages: Message) -> None:
    for message in messages:
        sink.publish(message)


def test_a_fifo_waits_for_its_reader_who_then_gets_everything(
    fifo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = Outbox("fifo", JsonLines(str(fifo)), "wait", threading.Event())
    assert f"waiting until a program reads the FIFO {fifo}" in capsys.readouterr().err
    for message in (START, *(reading(float(k)) for k in range(5))):
        box.put(message)
    reader = Reader(str(fifo))
    box.close()
    records = reader.records()
    assert [record["type"] for record in records] == ["start", *["reading"] * 5]
    assert box.dropped == 0


def test_a_fifo_without_a_reader_does_not_keep_a_stopped_run_from_ending(fifo: Path) -> None:
    stop = threading.Event()
    box = Outbox("fifo", JsonLines(str(fifo)), "wait", stop)
    stop.set()
    for k in range(CAPACITY + 3):
        box.put(reading(float(k)))
    box.close(timeout_s=0.1)
    Reader(str(fifo))  # lets the waiting thread go


@pytest.mark.parametrize("live", [True, False])
def test_a_reader_of_a_pipe_that_goes_away_ends_the_run(pipe: tuple[int, int], live: bool) -> None:
    reading_end, writing_end = pipe
    sink = JsonLines(f"/dev/fd/{writing_end}", live=live)
    sink.publish(START)
    os.close(reading_end)
    with pytest.raises(ReaderGone):
        sink.publish(reading(0.0))


def test_a_reader_of_a_fifo_that_goes_away_ends_a_files_run(fifo: Path) -> None:
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLines(str(fifo))
    sink.publish(START)
    os.close(end)
    with pytest.raises(ReaderGone):
        sink.publish(reading(0.0))
    sink.close()


def test_a_live_run_waits_for_the_next_reader_of_a_fifo_who_gets_the_start_first(fifo: Path) -> None:
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLines(str(fifo), live=True)
    publish(sink, START, reading(0.0))
    os.close(end)
    with pytest.raises(BrokenPipeError):  # the outbox counts the line
        sink.publish(reading(1.0))
    next_reader = Reader(str(fifo))
    publish(sink, reading(2.0), reading(3.0))
    sink.close()
    records = next_reader.records()
    assert [record["type"] for record in records] == ["start", "reading", "reading"]
    assert [record["time_s"] for record in records[1:]] == [2.0, 3.0]


def test_a_live_run_goes_on_where_a_fifo_is_removed(fifo: Path) -> None:
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLines(str(fifo), live=True)
    sink.publish(START)
    os.close(end)
    fifo.unlink()
    for time_s in (0.0, 1.0):
        with pytest.raises(OSError, match=r"Broken pipe|No such file"):  # the outbox counts the line
            sink.publish(reading(time_s))
    sink.close()


@pytest.mark.parametrize("when_full", ["wait", "drop-oldest"])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_gets_whole_lines(pipe: tuple[int, int], when_full: Any, blocking: bool) -> None:
    reading_end, writing_end = pipe
    os.set_blocking(writing_end, blocking)  # false where a program that shares the pipe has made it so
    box = Outbox("pipe", JsonLines(f"/dev/fd/{writing_end}", live=True), when_full, threading.Event())
    sent = [START, *(Notice(float(k), "x" * (k % 5000)) for k in range(1500))]  # 3.5 MB; a pipe holds 64 kB
    producer = threading.Thread(target=lambda: [box.put(message) for message in sent])
    producer.start()
    if when_full == "drop-oldest":
        producer.join(60)  # it never waits, though nobody reads
        assert not producer.is_alive()
    reader = Reader(reading_end)
    producer.join(60)
    box.close(timeout_s=60)
    os.close(writing_end)
    times = [record["time_s"] for record in reader.records() if record["type"] == "notice"]
    assert times == sorted(times)
    assert times[-1] == 1499.0
    assert len(times) + box.dropped in (1500, 1501)  # the start may be among the dropped ones
    assert box.dropped == 0 or when_full == "drop-oldest"


def test_a_device_takes_a_timeline() -> None:
    sink = JsonLines("/dev/null")
    publish(sink, START, reading(0.0))
    sink.close()


def test_a_descriptor_that_appends_to_a_log_keeps_what_the_log_holds(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"earlier\n")
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND)
    os.set_inheritable(log, True)
    sink = JsonLines(f"/dev/fd/{log}")
    publish(sink, START, reading(0.0))
    sink.close()
    os.write(log, b"later\n")  # it is still open
    os.close(log)
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert (lines[0], len(lines), lines[-1]) == (b"earlier", 4, b"later")


def test_a_descriptor_that_is_a_socket_takes_a_timeline() -> None:
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    sink = JsonLines(f"/dev/fd/{theirs.fileno()}")
    sink.publish(START)
    assert json.loads(ours.recv(65_536))["type"] == "start"
    ours.close()
    theirs.close()


def test_paths_of_this_processs_descriptors_are_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path, descriptor in (
        ("/dev/stdout", 1),
        ("/dev/stderr", 2),
        ("/dev/fd/63", 63),
        ("/proc/self/fd/5", 5),
        (f"/proc/{os.getpid()}/fd/5", 5),
        (f"{tmp_path}/link", 1),
        (f"{tmp_path}/loop", None),
        (f"{tmp_path}/file", None),
        (f"{tmp_path}/1", None),
        ("/dev/null", None),
        ("/proc/1/fd/1", None),
    ):
        assert descriptor_of(Path(path)) == descriptor, path


def test_what_cannot_take_a_timeline_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with (tmp_path / "own").open("w") as own, (tmp_path / "own").open() as unwritable:
        os.set_inheritable(unwritable.fileno(), True)
        for descriptor in (own.fileno(), unwritable.fileno(), 999):  # 999 is not open at all
            with pytest.raises(UserError, match="not open for writing; give --out jsonl: a file"):
                JsonLines(f"/dev/fd/{descriptor}")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(UsageError, match="is a socket or a disk"):
            JsonLines(str(tmp_path / "socket"))
    with pytest.raises(UserError, match="Is a directory; choose another --out"):
        JsonLines(str(tmp_path))
    with pytest.raises(UserError, match="No such file or directory; choose another --out"):
        JsonLines(str(tmp_path / "none" / "timeline"))
    assert (tmp_path / "own").read_bytes() == b""
