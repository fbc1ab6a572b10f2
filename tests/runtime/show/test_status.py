"""The status of each second: when it is due, and what stands in it."""

from __future__ import annotations

import contextlib
import socket
import time

from runtime.endpoints import LOOPBACK
from runtime.show.controls import Controls, ControlState
from runtime.show.status import Heartbeat, Progress, RunState, build_status

PROGRESS = Progress(readings=7, ticks=9, skipped=2)


def test_a_status_is_due_each_second_of_the_run_s_clock() -> None:
    heartbeat = Heartbeat(ControlState())
    beats = [beat.beat for tick in range(35) if (beat := heartbeat.attend(tick / 10)[1]) is not None]
    assert beats == [0, 1, 2, 3]


def test_a_clock_that_leaps_gets_one_status_and_goes_on_from_there() -> None:
    heartbeat = Heartbeat(ControlState())
    times_s = (0.0, 0.5, 7.3, 7.9, 8.0)
    beats = [beat.beat for time_s in times_s if (beat := heartbeat.attend(time_s)[1]) is not None]
    assert beats == [0, 7, 8]


def test_the_real_time_ratio_is_the_run_s_clock_to_the_wall_s() -> None:
    wall_s = iter([100.0, 100.0, 100.5])
    heartbeat = Heartbeat(ControlState(), lambda: next(wall_s))
    _, first = heartbeat.attend(0.0)
    _, second = heartbeat.attend(1.0)
    assert first is not None
    assert second is not None
    assert (first.realtime_ratio, second.realtime_ratio) == (1.0, 2.0)
    assert second.uptime_s == 0.5


def test_a_control_makes_a_status_due_at_once_and_stands_in_it() -> None:
    with contextlib.closing(Controls(LOOPBACK, 0)) as controls:
        state = ControlState(controls)
        heartbeat = Heartbeat(state)
        heartbeat.attend(0.0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"/control/mute\0\0\0,\0\0\0", (LOOPBACK, controls.port))
            peer.sendto(b"nonsense", (LOOPBACK, controls.port))
        deadline_s = time.monotonic() + 120
        while controls.packets < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        notices, beat = heartbeat.attend(0.4)
        assert [notice.text for notice in notices] == ["control received from 127.0.0.1: mute"]
        assert beat is not None
        status = build_status(beat, state, PROGRESS, RunState(narrator="on"))
    assert (status.state, status.muted, status.controls, status.controls_ignored) == ("muted", True, 1, 1)
    assert (status.readings, status.dropped_moments, status.beat, status.narrator) == (7, 2, 0, "on")


def test_a_show_outside_its_hours_counts_as_muted() -> None:
    _, beat = Heartbeat(ControlState()).attend(0.0)
    assert beat is not None
    status = build_status(beat, ControlState(), PROGRESS, RunState(narrator="off", state="muted"))
    assert status.muted
    status = build_status(beat, ControlState(), PROGRESS, RunState(narrator="off", state="engaged"))
    assert (status.state, status.muted) == ("engaged", False)
