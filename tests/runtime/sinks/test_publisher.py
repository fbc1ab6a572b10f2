"""The publisher: who gets which message, what is counted, and how a run's sinks are closed."""

from __future__ import annotations

import threading

import pytest

from runtime.messages import End, Message, Narration, Notice, Reading, Status
from runtime.sinks.outbox import Outbox
from runtime.sinks.publisher import Publisher

READING = Reading(0.1, 0.0, 0.0, 0.1, 0.1, {}, "audio", None, 0.0)
STATUS = Status(1.0, "running", 1, 1.0, 1.0, 0, False, 0.0, 0, 0, 0)
END = End(1.0, "source ended", "2026-01-01T00:00:00+00:00", 1.0, 0, 0, {})


class Kept:
    """A sink that keeps what it gets; ``dropped`` as a sink counts it that leaves messages out."""

    def __init__(self, dropped: int = 0, fails: bool = False) -> None:
        self.messages: list[Message] = []
        self.dropped, self.fails, self.closed = dropped, fails, False

    def publish(self, message: Message) -> None:
        if self.fails:
            raise OSError("no space left")
        self.messages.append(message)

    def close(self) -> None:
        self.closed = True


def boxes(**sinks: Kept) -> list[Outbox]:
    stop = threading.Event()
    return [Outbox(name.replace("_", ":"), sink, "wait", stop) for name, sink in sinks.items()]


def test_readings_and_narrations_are_counted_and_reach_every_sink() -> None:
    one, two = Kept(), Kept()
    publisher = Publisher(boxes(one=one, two=two))
    for message in (READING, Notice(0.2, "x"), Narration(0.3, 0.1, "rain"), READING):
        publisher.publish(message)
    publisher.close(END, None)
    assert (publisher.readings, publisher.narrations) == (2, 1)
    assert one.messages == two.messages
    assert [type(m).__name__ for m in one.messages] == ["Reading", "Notice", "Narration", "Reading", "End"]


@pytest.mark.parametrize("live", [True, False])
def test_a_status_goes_to_a_show_and_a_page_always_and_to_all_in_a_live_run(live: bool) -> None:
    sinks = {"osc_h_1": Kept(dropped=3), "web_1": Kept(), "jsonl_f": Kept()}
    publisher = Publisher(boxes(**sinks), status_to_all=live)
    publisher.publish(STATUS)
    publisher.close(END, None)
    got = {name: [m for m in sink.messages if isinstance(m, Status)] for name, sink in sinks.items()}
    assert [len(statuses) for statuses in got.values()] == [1, 1, int(live)]
    assert got["osc_h_1"][0].dropped_messages == 3
    assert got["web_1"][0].dropped_messages == 0


def test_a_sink_that_fails_is_reported_after_every_sink_is_closed() -> None:
    bad, good = Kept(fails=True), Kept()
    publisher = Publisher(boxes(bad=bad, good=good))
    publisher.publish(READING)
    with pytest.raises(OSError, match="no space left"):
        publisher.close(END, None)
    assert bad.closed
    assert good.closed
    assert good.messages[-1] is END


def test_the_run_s_own_failure_comes_before_a_sink_s() -> None:
    publisher = Publisher(boxes(bad=Kept(fails=True)))
    with pytest.raises(RuntimeError, match="first"):
        publisher.close(END, RuntimeError("first"))
