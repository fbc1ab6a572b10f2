"""Devices that come and go: states and notices on a simulated clock, and the thread that reopens them."""

from __future__ import annotations

import queue
import re
import statistics
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import ManualClock, MonotonicClock
from runtime.mailbox import Closed
from runtime.messages import Frame, Notice, Sound
from runtime.sources.supervision import (
    NOTICES,
    NOTICES_S,
    DeviceError,
    DeviceLoss,
    DeviceMonitor,
    DeviceThread,
    LiveFeed,
)
from tests.live_peers import until
from vaemotion.contract.address import Address

FREEZE_S = 0.8
_STOP = threading.Event()


def frame(time_s: float) -> Frame:
    return Frame(time_s, lambda: np.zeros((2, 2, 3), np.uint8))


def sound(time_s: float) -> Sound:
    return Sound(time_s, np.zeros(160, np.float32))


class ManualStream:
    """A stream whose frames, sound and errors come from the test.

    ``give`` returns when the ``DeviceThread`` has taken the event.
    """

    def __init__(self) -> None:
        self.opened = 0
        self._given: queue.Queue[Frame | Sound | Exception] = queue.Queue()

    def stream(self, stop: threading.Event) -> Iterator[Frame | Sound]:
        self.opened += 1
        while not stop.is_set():
            try:
                event = self._given.get(timeout=0.01)
            except queue.Empty:
                continue
            if isinstance(event, Exception):
                self._given.task_done()
                raise event
            yield event
            self._given.task_done()  # only now: it is in the mailbox

    def give(self, event: Frame | Sound) -> None:
        self._given.put(event)
        self._given.join()

    def fail(self, error: Exception) -> None:
        """Raise an error in the stream, and return when it has been opened again."""
        opened = self.opened
        self._given.put(error)
        until(lambda: self.opened > opened, "another attempt")


steps = st.lists(
    st.tuples(
        st.floats(0.0, 2.0),  # seconds that pass
        st.sampled_from(["nothing", "evidence", "old evidence", "lost", "lost and back"]),
        st.floats(0.0, 3.0),  # how old the old evidence is
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps, st.floats(0.2, 3.0), st.sampled_from([0.0, 5.0]))
def test_a_device_is_live_exactly_while_its_evidence_is_young_and_no_notice_is_repeated(
    steps: list[tuple[float, str, float]], freeze_s: float, slowest_s: float
) -> None:
    monitor, now_s, loss = DeviceMonitor("camera", freeze_s, slowest_s), 0.0, None
    stamps_s: list[float] = []
    states, texts, told_s = ["absent"], [""], list[float]()
    for passed_s, what, age_s in steps:
        now_s += passed_s
        if what.startswith("lost"):
            loss = DeviceLoss(now_s, "pulled out")
        if what in ("evidence", "old evidence", "lost and back"):
            stamps_s.append(now_s - (age_s if what == "old evidence" else 0.0))
            monitor.add_evidence(stamps_s[-1])
            loss = None
        notices = monitor.step(now_s, loss)
        young = bool(stamps_s) and now_s - max(stamps_s) <= monitor.limit_s
        assert freeze_s <= monitor.limit_s <= max(freeze_s, 2.5 * slowest_s)
        assert (monitor.state == "live") == (young and loss is None)
        assert (monitor.state == "absent") == (not stamps_s)
        if loss is not None and stamps_s:
            assert monitor.state == "lost"
        if monitor.state == "frozen":
            assert states[-1] in ("live", "frozen", "absent")  # a lost device does not become frozen
        states.append(monitor.state)
        assert [n.time_s for n in notices] == [round(now_s, 3)] * len(notices)
        for notice in notices:
            assert notice.text.startswith(f"camera {monitor.state}")
            assert notice.text != texts[-1]
            texts.append(notice.text)
            told_s.append(now_s)
            assert sum(now_s - time_s < NOTICES_S for time_s in told_s) <= NOTICES
        status = monitor.status(now_s)
        assert status.state == monitor.state
        if stamps_s:
            assert status.age_s == pytest.approx(now_s - max(stamps_s), abs=1e-3)
        else:
            assert status.age_s is None
    lost = sum(a == "live" != b for a, b in pairwise(states))
    assert monitor.losses == monitor.status(now_s).losses == lost


@pytest.mark.parametrize(("age_s", "state"), [(0.0, "live"), (0.79, "live"), (0.81, "frozen")])
def test_evidence_that_was_old_when_it_came_makes_nothing_live(age_s: float, state: str) -> None:
    monitor = DeviceMonitor("camera", FREEZE_S)
    monitor.add_evidence(10 - age_s)
    assert [notice.text for notice in monitor.step(10.0)] == [f"camera {state}"]


def test_an_absent_device_gives_each_new_reason_once() -> None:
    monitor = DeviceMonitor("microphone")
    assert monitor.step(0.0) == []
    reasons = ["no cable", "no cable", "no right", "no cable"]
    texts = [[n.text for n in monitor.step(k, DeviceLoss(k, reason))] for k, reason in enumerate(reasons)]
    no_cable, no_right = "microphone absent: no cable", "microphone absent: no right"
    assert texts == [[no_cable], [], [no_right], [no_cable]]
    assert monitor.losses == 0


def test_a_loose_contact_gives_a_few_notices_a_minute_which_count_the_others() -> None:
    monitor, texts, changes = DeviceMonitor("camera"), list[str](), 0
    for k in range(600):  # ten minutes of a device that is lost and back every second
        loss = None if k % 2 else DeviceLoss(k, "pulled out")
        monitor.add_evidence(k) if loss is None else None
        texts += [notice.text for notice in monitor.step(k, loss)]
        changes += 1
    for k in range(600, 700):  # and is well again
        monitor.add_evidence(k)
        texts += [notice.text for notice in monitor.step(k)]
    assert len(texts) <= NOTICES * 12
    left_out = sum(int(count) for text in texts for count in re.findall(r"left out before: (\d+)", text))
    assert left_out + len(texts) == changes
    assert texts[-1].startswith("camera live")


ticks = st.lists(
    st.tuples(
        st.sampled_from([0.02, 0.1, 0.1, 0.5, 1.0]),
        st.lists(st.sampled_from(["camera", "microphone"]), max_size=3),  # devices that give something
        st.sampled_from([None, None, None, "camera", "microphone"]),  # a device that was lost before that
    ),
    max_size=25,
)


class ManualDevice:
    """A ``runtime.sources.supervision.Device`` without a thread, whose events come from the test."""

    def __init__(self, name: str) -> None:
        self.monitor = DeviceMonitor(name, FREEZE_S)
        self.dropped = 0
        self.events: list[Frame | Sound] = []
        self.loss: DeviceLoss | None = None
        self.interrupted = self.closed = False

    def lose(self, time_s: float) -> None:
        self.loss, self.interrupted = DeviceLoss(time_s, "pulled out"), True

    def take(self, now_s: float) -> tuple[list[Frame | Sound | Notice], bool]:
        events, self.events = self.events, []
        interrupted, self.interrupted = self.interrupted, False
        for event in events:
            self.monitor.add_evidence(event.time_s)
            self.loss = None
        return [*events, *self.monitor.step(now_s, self.loss)], interrupted

    def close(self) -> None:
        self.closed = True


@settings(deadline=None)
@given(ticks)
def test_a_feed_delivers_what_came_and_names_devices_that_are_not_live_or_were_lost_meanwhile(
    ticks: list[tuple[float, list[str], str | None]],
) -> None:
    clock = ManualClock()
    devices: dict[Any, Any] = {"camera": ManualDevice("camera"), "microphone": ManualDevice("microphone")}
    feed = LiveFeed(devices, clock)
    now_s, newest_s = 0.0, dict.fromkeys(devices, -1e9)
    for passed_s, sources, lost in ticks:
        stamp_s = now_s + passed_s / 2
        now_s += passed_s
        if lost is not None:
            devices[lost].lose(stamp_s)
            newest_s[lost] = -1e9
        for role in sources:
            devices[role].events.append(frame(stamp_s) if role == "camera" else sound(stamp_s))
            newest_s[role] = stamp_s
        arrived = feed.until(now_s, _STOP)
        assert clock.now_s() == now_s
        young = {role for role, time_s in newest_s.items() if now_s - time_s <= FREEZE_S}
        assert feed.live() <= young  # nothing stale is ever live
        assert arrived.lost == ({"camera", "microphone"} - feed.live()) | ({lost} if lost else set())
        assert (arrived.frame is not None) == ("camera" in sources)
        assert len(arrived.sound) == sources.count("microphone")
        assert not arrived.over
        assert {role for role, status in feed.status(now_s).items() if status.state == "live"} == feed.live()
        if feed.live() != {"camera", "microphone"}:
            assert feed.skew_ms is None


@settings(deadline=None)
@given(st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=60))
def test_the_skew_is_the_median_of_newest_sound_minus_newest_frame_over_two_seconds(
    skews_s: list[float],
) -> None:
    clock = ManualClock()
    camera, microphone = ManualDevice("camera"), ManualDevice("microphone")
    feed = LiveFeed({"camera": camera, "microphone": microphone}, clock)
    measured: list[float] = []
    for k, skew_s in enumerate(skews_s):
        now_s = (k + 1) * 0.25
        camera.events.append(frame(now_s - 0.1))
        microphone.events.append(sound(now_s - 0.1 + skew_s))
        feed.until(now_s, _STOP)
        assert camera.monitor.newest_s is not None
        assert microphone.monitor.newest_s is not None
        measured.append(microphone.monitor.newest_s - camera.monitor.newest_s)
        assert feed.skew_ms == pytest.approx(1000 * statistics.median(measured[-9:]))


def test_a_feed_closes_its_devices_and_reports_drops_and_drift() -> None:
    camera, microphone = ManualDevice("camera"), ManualDevice("microphone")
    camera.dropped = 3
    feed = LiveFeed({"camera": camera, "microphone": microphone}, ManualClock(), lambda: 42.0)
    assert feed.dropped == {"events of the camera": 3, "events of the microphone": 0}
    assert feed.drift_ppm == 42.0
    feed.close()
    assert camera.closed
    assert microphone.closed


def test_events_from_before_a_loss_are_not_delivered_after_it() -> None:
    clock, source = ManualClock(5.0), ManualStream()
    device = DeviceThread("camera", source.stream, clock)
    source.give(frame(4.9))
    events, interrupted = device.take(5.0)
    assert ([type(event) for event in events], interrupted) == ([Frame, Notice], False)
    source.give(frame(5.0))
    source.fail(DeviceError("pulled out"))
    events, interrupted = device.take(5.1)
    assert interrupted
    assert [event.text for event in events if isinstance(event, Notice)] == ["camera lost: pulled out"]
    assert len(events) == 1
    assert device.take(5.2) == ([], False)
    source.give(frame(5.3))
    events, interrupted = device.take(5.3)
    assert ([event.time_s for event in events if isinstance(event, Frame)], interrupted) == ([5.3], False)
    assert device.monitor.losses == 1
    device.close()


def test_a_device_that_was_lost_and_came_back_between_two_ticks_is_named_as_lost() -> None:
    clock, source = ManualClock(1.0), ManualStream()
    device = DeviceThread("camera", source.stream, clock)
    feed = LiveFeed({"camera": device}, clock)
    source.give(frame(1.0))
    assert feed.until(1.0, _STOP).lost == set()
    source.give(frame(1.1))
    source.fail(DeviceError("a loose contact"))
    source.give(frame(1.2))
    arrived = feed.until(1.3, _STOP)
    assert feed.live() == {"camera"}
    assert arrived.lost == {"camera"}
    assert arrived.frame is not None
    assert arrived.frame.time_s == 1.2
    feed.close()


def test_a_device_that_cannot_be_opened_is_tried_again_and_a_stream_that_ends_is_opened_again() -> None:
    opened: list[float] = []
    clock = MonotonicClock()

    def stream(stop: threading.Event) -> Iterator[Frame]:
        opened.append(clock.now_s())
        if len(opened) < 4:
            raise DeviceError("not there yet")
        yield frame(clock.now_s())

    device = DeviceThread("camera", stream, clock)
    until(lambda: len(opened) >= 6, "six attempts")
    notices = [event.text for event in device.take(clock.now_s())[0] if isinstance(event, Notice)]
    assert notices == ["camera lost: the stream ended"]
    device.close()
    assert np.diff(opened).min() >= 0.1  # a camera that is not there does not keep a processor busy


def test_an_error_that_nobody_thought_of_loses_the_device_and_it_is_opened_again() -> None:
    source = ManualStream()
    device = DeviceThread("camera", source.stream, ManualClock())
    source.give(frame(0.0))
    assert len(device.take(0.0)[0]) == 2
    source.fail(UnicodeError("a name of rtsp://visitor:secret@10.0.0.9/x\nand more"))
    events, interrupted = device.take(0.0)
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "camera lost: UnicodeError: a name of rtsp://10.0.0.9/…"
    ]
    assert interrupted
    source.give(frame(0.1))
    assert [type(event) for event in device.take(0.1)[0]] == [Frame, Notice]
    device.close()


class Unspeakable(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise self


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "invalid continuation byte"),
            "UnicodeDecodeError: 'utf-8'",
        ),
        (MemoryError(), "MemoryError"),
        (Unspeakable(), "Unspeakable"),
        (SystemExit(3), "SystemExit: 3"),
        (RecursionError("x" * 5000), "RecursionError: xxx"),
        (Closed(), "Closed"),
        (DeviceError(""), "DeviceError"),
        (OSError("401 for s3cret at rtsp://anna:s3cret@cam/live"), "OSError: 401 for … at rtsp://cam/…"),
        (OSError("\x1b]52;c;ZXZpbA==\x07"), r"OSError: \x1b]52;c;ZXZpbA==\x07"),
    ],
)
def test_no_error_of_a_device_ends_its_thread(error: BaseException, told: str) -> None:
    tries, clock = list[float](), ManualClock()

    def stream(stop: threading.Event) -> Iterator[Frame]:
        tries.append(clock.now_s())
        if len(tries) < 3:
            raise error
        while not stop.wait(0.01):
            yield frame(1.0)

    device = DeviceThread("camera", stream, clock, address=Address("rtsp://anna:s3cret@cam/live"))
    feed = LiveFeed({"camera": device}, clock)
    until(lambda: len(tries) >= 2, "another try")
    notices = feed.until(0.0, _STOP).notices
    assert notices[0].text.startswith(f"camera absent: {told}")
    assert all(len(notice.text) < 400 for notice in notices)
    until(lambda: bool(feed.until(1.0, _STOP).frame), "a frame after the errors")
    assert feed.live() == {"camera"}
    feed.close()
    assert not device._thread.is_alive()


def test_closing_ends_the_thread_and_the_stream_with_it() -> None:
    ended = threading.Event()

    def stream(stop: threading.Event) -> Iterator[Frame]:
        try:
            while not stop.wait(0.01):
                yield frame(0.0)
        finally:
            ended.set()

    device = DeviceThread("camera", stream, ManualClock())
    until(lambda: device.monitor.newest_s is not None or bool(device.take(0.0)[0]), "a frame")
    device.close()
    assert ended.wait(10)
    assert not device._thread.is_alive()
