"""Sinks: whole lines, and a slow sink does not slow the run."""

from __future__ import annotations

import io
import json
import os
import pty
import threading
from pathlib import Path
from typing import TextIO, cast

import pytest

from runtime.messages import End, Message, Narration, Notice, Reading, Start
from runtime.sinks.console import ErrorStream, LiveConsole, PlainConsole, plane
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.outbox import CAPACITY, Outbox
from runtime.sinks.stream import ReaderGone
from vaemotion.contract.errors import UserError
from vaemotion.contract.terminal import Terminal


def reading(time_s: float, valence: float = 0.3, arousal: float = -0.4) -> Reading:
    return Reading(time_s, valence, arousal, 0.1, 0.2, {"awe": 0.7, "fear": 0.3}, "visual", 0.0, None, 12.0)


class Slow:
    """A sink that blocks on its first message until ``go`` is set."""

    def __init__(self) -> None:
        self.go, self.got = threading.Event(), []

    def publish(self, message: Message) -> None:
        self.go.wait(30)
        self.got.append(message)

    def close(self) -> None:
        pass


def test_a_slow_sink_loses_the_oldest_messages_and_they_are_counted() -> None:
    sink = Slow()
    box = Outbox("slow", sink, "drop-oldest", threading.Event())
    sent = [reading(k / 10) for k in range(CAPACITY + 100)]
    for message in sent:
        box.put(message)  # never waits, though the sink takes nothing
    sink.go.set()
    box.close(timeout_s=30)
    assert len(sink.got) + box.dropped == len(sent)
    assert 99 <= box.dropped <= 100  # the first may have been taken already
    assert sink.got[-50:] == sent[-50:]


def test_where_nothing_may_be_lost_everything_arrives_in_order(tmp_path: Path) -> None:
    box = Outbox("lines", JsonLines(str(tmp_path / "t")), "wait", threading.Event())
    for k in range(3 * CAPACITY):
        box.put(reading(k / 10))
    box.close(timeout_s=30)
    times = [json.loads(line)["time_s"] for line in (tmp_path / "t").read_text().splitlines()]
    assert times == [k / 10 for k in range(3 * CAPACITY)]
    assert box.dropped == 0


def test_a_stuck_sink_does_not_keep_a_stopped_run_from_ending() -> None:
    sink, stop = Slow(), threading.Event()
    box = Outbox("stuck", sink, "wait", stop)
    stop.set()
    for k in range(CAPACITY + 3):
        box.put(reading(k / 10))
    box.close(timeout_s=0.1)
    sink.go.set()


def test_where_nothing_may_be_lost_the_end_waits_for_a_slow_sink() -> None:
    sink = Slow()
    box = Outbox("slow", sink, "wait", threading.Event())
    sent = [reading(k / 10) for k in range(20)]
    for message in sent:
        box.put(message)
    closing = threading.Thread(target=box.close, args=(0.01,))
    closing.start()
    closing.join(0.5)
    assert closing.is_alive()
    sink.go.set()
    closing.join(30)
    assert sink.got == sent


def test_a_sinks_failure_is_raised_by_put_and_close() -> None:
    box = Outbox("full", JsonLines("/dev/full"), "wait", threading.Event())
    box.put(reading(0))
    with pytest.raises(UserError, match="No space left"):
        box.close(timeout_s=30)
    with pytest.raises(UserError, match="No space left"):
        box.put(reading(1))


@pytest.mark.parametrize("live", [True, False])
def test_a_terminal_that_is_closed_takes_nothing_and_ends_nothing(live: bool) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        console = Terminal(file=cast(TextIO, ErrorStream(terminal)), width=100)
        sink = LiveConsole(console) if live else PlainConsole(console)
        sink.publish(reading(0.0))
        seen = b""
        while b"valence" not in seen:
            seen += os.read(ours, 65_536)
        os.close(ours)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(theirs, b"x")
        for k in range(1, 50):
            sink.publish(reading(float(k)))
        sink.publish(End(50.0, "source ended", "now", 0.5, 50, 0, {}))
        sink.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # for the flush when it is closed


def test_a_console_without_a_reader_ends_the_run() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as pipe:
        sink = PlainConsole(Terminal(file=cast(TextIO, ErrorStream(pipe))))
        sink.publish(reading(0.0))
        os.close(ours)
        with pytest.raises(ReaderGone):
            sink.publish(reading(2.0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)


def test_plain_lines_are_one_reading_a_second_and_every_narration() -> None:
    text = io.StringIO()
    sink = PlainConsole(Terminal(file=text, width=200))
    sink.publish(Start("tiny", "0" * 64, "clip.mkv", "max", ("vision_encoder: CPU",), {}, "0.1"))
    for k in range(21):
        sink.publish(reading(k / 10))
    sink.publish(Narration(1.2, 1.0, "a [bold]bell[/bold], calm"))
    sink.publish(Notice(1.3, "damaged packet"))
    sink.publish(End(2.1, "source ended", "now", 0.5, 21, 1, {"vision_encoder": 21}, {"moments": 3}))
    lines = text.getvalue().splitlines()
    assert sum("valence" in line for line in lines) == 3
    assert "“a [bold]bell[/bold], calm”" in text.getvalue()  # markup in a text is text
    assert "21 readings, 1 narrations; encoded 21 × vision_encoder; dropped 3 moments" in lines[-1]


@pytest.mark.parametrize(
    ("valence", "arousal", "row", "column"), [(-1, 1, 0, 0), (1, -1, 12, 32), (0, 0, 6, 16), (1, 1, 0, 32)]
)
def test_the_plane_puts_readings_where_they_belong(
    valence: float, arousal: float, row: int, column: int
) -> None:
    lines = plane([reading(0.0, valence, arousal)]).plain.splitlines()
    assert [(r, line.index("●")) for r, line in enumerate(lines) if "●" in line] == [(row, column)]
