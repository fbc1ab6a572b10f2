"""The simulated surroundings of a soak: sink, temperature, controls and speed."""

from __future__ import annotations

import time
from typing import Any

import pytest

from runtime.commands.soak.faults import Fault
from runtime.commands.soak.world import SlowSink, World
from runtime.machine.stop import Stop
from runtime.messages import Notice
from runtime.show.controls import Controls
from runtime.sinks.outbox import CAPACITY, Outbox


@pytest.fixture
def controls() -> Any:
    controls = Controls("127.0.0.1", 0)
    yield controls
    controls.close()


def test_a_dead_sink_drops_the_oldest_messages_and_recovers(controls: Controls) -> None:
    stop = Stop()
    world = World([Fault("dead sink", "sink", 1, 5)], 10, 0.5, None, stop, controls)
    box = Outbox("slow", SlowSink(world.sink_open), "drop-oldest", stop)
    world.sleep_until(2.0)
    for k in range(CAPACITY + 101):
        box.put(Notice(float(k), "x"))
    assert box.dropped in (100, 101)  # the sink may hold one
    world.sleep_until(6.0)
    box.close(timeout_s=30)
    assert box.dropped in (100, 101)
    world.close()


def test_the_world_heats_up_sends_controls_and_ends(controls: Controls) -> None:
    faults = [
        Fault("heat", "machine", 2, 30),
        Fault("mute", "show", 3, 5),
        Fault("ignore audio", "show", 6, 10),
    ]
    stop = Stop()
    world = World(faults, 40, 1.0, None, stop, controls)
    headroom_c, names = [], []
    for k in range(41):
        assert not stop.is_set()
        world.sleep_until(float(k), stop)
        headroom_c.append(world.headroom_c())
        names += [(k, control.name, control.seconds) for control in controls.take()]
    assert names == [(3, "mute", 0), (5, "resume", 0), (6, "ignore_audio", 4)]
    assert headroom_c[0] == 40
    assert min(headroom_c) == headroom_c[25] == 2
    assert headroom_c[-1] > 10
    assert stop.is_set()
    assert (world.work_ms >= 0).sum() == 40
    world.close()


def test_a_speed_is_kept_to(controls: Controls) -> None:
    world, began_s = World([], 10, 0.5, 20.0, Stop(), controls), time.monotonic()
    for k in range(9):
        world.sleep_until(k / 2)
    assert time.monotonic() - began_s >= 0.19
    assert world.now_s() == 4.0
    world.close()
