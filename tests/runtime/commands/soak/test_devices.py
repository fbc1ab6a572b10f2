"""The simulated camera and microphone of a soak: outages, freezes, clock skew, reproducibility."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from runtime.clock import ManualClock
from runtime.commands.soak.devices import GroundTruth, SimulatedCamera, SimulatedMicrophone
from runtime.commands.soak.faults import Fault, schedule
from runtime.commands.soak.film import Recording
from runtime.messages import Frame, Notice, Sound
from runtime.sources.supervision import LiveFeed


def run_device(device: Any, end_s: float, step_s: float = 0.5) -> tuple[list[Any], list[str], list[float]]:
    """Return all events, the state after each step, and the times at which an interruption was reported."""
    events, states, interrupted_s = [], [], []
    for k in range(round(end_s / step_s) + 1):
        new, interrupted = device.take(k * step_s)
        events += new
        states.append(device.monitor.state)
        if interrupted:
            interrupted_s.append(k * step_s)
    return events, states, interrupted_s


def frames(events: list[Any]) -> list[Frame]:
    return [event for event in events if isinstance(event, Frame)]


def test_a_camera_that_is_unplugged_is_lost_once_and_comes_back(film: Recording) -> None:
    camera = SimulatedCamera(film, [Fault("camera unplugged", "camera", 5, 10)], 0)
    events, states, interrupted_s = run_device(camera, 15)
    assert states[2] == "live"
    assert interrupted_s == [5.0]
    assert states[10:20] == ["lost"] * 10
    assert states[-1] == "live"
    assert camera.monitor.losses == 1
    assert not [frame for frame in frames(events) if 5 <= frame.time_s < 10]
    assert camera.truth.newest_s(9.0) == 4.5  # later frames were lost with the stream
    assert camera.truth.newest_s(14.0) == 14.0
    assert [event.text for event in events if isinstance(event, Notice)][1] == "camera lost: no such device"


def test_a_frozen_camera_repeats_its_frame_and_delivers_nothing_new(film: Recording) -> None:
    camera = SimulatedCamera(film, [Fault("camera frozen", "camera", 5, 45)], 0)
    events, states, interrupted_s = run_device(camera, 50)
    assert states[12] == "frozen"
    assert len(interrupted_s) == 1  # after half a minute of the same frame it is opened again
    assert not [frame for frame in frames(events) if 5 <= frame.time_s < 45]
    assert camera.truth.newest_s(40.0) == 4.9
    assert states[-1] == "live"


def test_a_dark_camera_is_live_and_black(film: Recording) -> None:
    camera = SimulatedCamera(film, [Fault("darkness", "camera", 2, 20)], 0)
    events, states, _ = run_device(camera, 25)
    dark = [frame.picture() for frame in frames(events) if 2 <= frame.time_s < 20]
    assert len(dark) == 180
    assert max(frame.max() for frame in dark) == 1
    assert set(states[1:]) == {"live"}
    assert frames(events)[-1].picture().max() > 1


@pytest.mark.parametrize("device", [SimulatedCamera, SimulatedMicrophone])
def test_a_device_that_is_absent_at_boot_was_never_lost(film: Recording, device: Any) -> None:
    lane = device(film, [], 0).monitor.name
    absent = device(film, [Fault(f"{lane} absent at boot", lane, 0, 6)], 0)
    _, states, interrupted_s = run_device(absent, 15)
    assert states[:12] == ["absent"] * 12
    assert states[-1] == "live"
    assert absent.monitor.losses == 0
    assert not interrupted_s
    assert absent.truth.newest_s(5.9) is None


@pytest.mark.parametrize("kind", ["microphone unplugged", "microphone frozen"])
def test_a_microphone_stops_and_starts_again(film: Recording, kind: str) -> None:
    microphone = SimulatedMicrophone(film, [Fault(kind, "microphone", 5.1, 12)], 0)
    events, states, interrupted_s = run_device(microphone, 20)
    sounds = [event for event in events if isinstance(event, Sound)]
    assert interrupted_s == [5.5 if kind.endswith("unplugged") else 7.5]
    assert not [sound for sound in sounds if 5.5 <= sound.time_s < 12]
    assert states[23] == "lost"
    assert states[-1] == "live"
    heard = np.concatenate([sound.samples for sound in sounds if sound.time_s < 5.1])
    assert np.array_equal(heard[:16_000], film.samples[:16_000])


@pytest.mark.parametrize("ppm", [-300.0, 300.0])
def test_the_sample_clock_follows_a_skewed_crystal_and_late_callbacks(film: Recording, ppm: float) -> None:
    faults = [
        Fault("late callbacks", "microphone", 10, 60),
        Fault("clock skew", "microphone", 70, 600, ppm),
    ]
    microphone = SimulatedMicrophone(film, faults, 0)
    events, states, _ = run_device(microphone, 600)
    assert set(states[1:]) == {"live"}
    assert 0 < microphone.worst_error_s < 0.02
    assert microphone.drift_ppm == pytest.approx(ppm, abs=10)
    count = sum(len(event.samples) for event in events if isinstance(event, Sound))
    assert count / 16_000 != pytest.approx(600, abs=0.09)  # the crystal is off, and the count with it


def test_silence_is_digital_zero_and_not_a_loss(film: Recording) -> None:
    microphone = SimulatedMicrophone(film, [Fault("silence", "microphone", 3, 6)], 0)
    events, states, _ = run_device(microphone, 8)
    levels = {event.time_s: np.abs(event.samples).max() for event in events if isinstance(event, Sound)}
    assert all(
        (level == 0) == (3.6 < time_s < 6)
        for time_s, level in levels.items()
        if not 2.9 < time_s < 3.6 and not 6 <= time_s < 6.6
    )
    assert set(states[1:]) == {"live"}


def test_the_same_seed_gives_the_same_events(film: Recording) -> None:
    faults = schedule(180, None, 3)
    for device in (SimulatedCamera, SimulatedMicrophone):
        first, second, other = (
            [event.time_s for event in run_device(device(film, faults, seed), 180)[0]] for seed in (3, 3, 4)
        )
        assert first == second
        assert first != other


def test_the_feed_takes_them_as_devices(film: Recording) -> None:
    camera, microphone = SimulatedCamera(film, [], 0), SimulatedMicrophone(film, [], 0)
    feed = LiveFeed({"camera": camera, "microphone": microphone}, ManualClock(), lambda: microphone.drift_ppm)
    arrived = [feed.until(k / 2, threading.Event()) for k in range(20)][-1]
    assert feed.live() == {"camera", "microphone"}
    assert arrived.frame is not None
    assert not arrived.lost
    assert feed.skew_ms is not None
    assert abs(feed.skew_ms) < 100
    feed.close()


def test_ground_truth_gives_the_newest_data_before_a_time() -> None:
    truth = GroundTruth()
    assert truth.newest_s(1.0) is None
    for time_s in (1.0, 1.1, 1.2):
        truth.add(time_s)
    truth.cut()
    truth.add(5.0)
    assert [truth.newest_s(time_s) for time_s in (0.9, 1.15, 3.0, 5.0, 9.0)] == [None, 1.15, 1.2, 5.0, 5.0]
