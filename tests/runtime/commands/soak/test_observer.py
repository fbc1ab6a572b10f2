"""The observer of a soak: stale values, recoveries, counts and memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from runtime.commands.soak.devices import GroundTruth
from runtime.commands.soak.faults import Fault
from runtime.commands.soak.observer import Observer, resident_mb, slope_mb_per_h
from runtime.messages import End, Narration, Reading, Status

END = End(4.0, "source ended", "2026-01-01T00:00:00+00:00", 4.0, 0, 1, {}, narrations_withheld={"cut": 2})


def reading(time_s: float, path: str) -> Reading:
    """Return a reading that states ages of 0 s."""
    return Reading(time_s, 0.1, 0.2, 0.1, 0.1, {"awe": 1.0}, path, 0.0, 0.0)


def status(time_s: float, state: str, narrator: str = "on") -> Status:
    return Status(time_s, state, int(time_s), 0.0, 1.0, 0, False, 0.0, 0, 0, 0, narrator=narrator)


def observer_of(faults: list[Fault], camera: list[float], microphone: list[float]) -> Observer:
    """Return an observer of devices that delivered data in intervals, given as start, end, start, end."""
    truths = {"camera": GroundTruth(), "microphone": GroundTruth()}
    for role, times_s in (("camera", camera), ("microphone", microphone)):
        for start_s, end_s in zip(times_s[::2], times_s[1::2], strict=True):
            truths[role].add(start_s)
            truths[role].add(end_s)
            truths[role].cut()
    return Observer(truths, faults, 100, 0.5, lambda _: None)


def test_a_value_without_evidence_is_stale_whatever_age_it_states() -> None:
    observer = observer_of([], camera=[0, 10], microphone=[5, 100])
    for time_s, path, stale in (
        (1, "visual", 0),
        (1, "audio", 1),  # none yet
        (11.4, "audio-visual", 0),
        (11.6, "audio-visual", 1),
        (11.6, "audio", 0),
        (50, "visual", 1),
    ):
        before = observer.stale
        observer.publish(reading(time_s, path))
        assert observer.stale - before == stale, (time_s, path)
    assert (
        observer.stale_examples[1]
        == "at 11.6 s the reading names the camera 1.6 s after the newest true evidence"
    )
    assert observer.paths == Counter({"audio-visual": 2, "visual": 2, "audio": 2})
    assert observer.path_changes == 4


def test_the_hash_is_of_the_readings() -> None:
    hashes: list[str] = []
    for valence in (0.1, 0.1, 0.100001):
        observer = observer_of([], [0, 10], [0, 10])
        observer.publish(status(1, "engaged"))
        observer.publish(replace(reading(1, "audio"), valence=valence))
        hashes.append(observer.readings_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_sound_that_is_to_be_ignored_is_no_evidence() -> None:
    observer = observer_of([Fault("ignore audio", "show", 20, 30)], camera=[0, 100], microphone=[0, 100])
    for time_s in (20.5, 21.4, 30.5):
        observer.publish(reading(time_s, "audio"))
    assert observer.stale == 0
    observer.publish(reading(25, "audio"))
    assert observer.stale == 1


def test_recovery_is_from_the_return_to_the_first_reading_with_the_device() -> None:
    faults = [
        Fault("camera unplugged", "camera", 10, 20),
        Fault("camera frozen", "camera", 30, 40),
        Fault("camera unplugged", "camera", 42, 44),
        Fault("microphone frozen", "microphone", 10, 20),
        Fault("ignore audio", "show", 19, 25),
    ]
    observer = observer_of(faults, [0, 100], [0, 100])
    for time_s, path in (
        (5, "audio-visual"),
        (21, "audio"),
        (21.5, "visual"),
        (26, "audio"),
        (43, "audio"),
        (45, "visual"),
    ):
        observer.publish(reading(time_s, path))
    assert observer.back_s == {"camera": [1.5, 1.0], "microphone": []}


def test_states_memory_and_narrations_are_counted() -> None:
    observer = observer_of([], [0, 100], [0, 100])
    for time_s, state, narrator in (
        (0, "empty", "on"),
        (1, "engaged", "on"),
        (2, "engaged", "slowed"),
        (3, "muted", "off"),
    ):
        observer.publish(status(time_s, state, narrator))
    observer.publish(Narration(2.0, 1.5, "A storm."))
    observer.publish(END)
    assert observer.states_s == {"empty": 1, "engaged": 2, "muted": 1}
    assert observer.state_changes == 2
    assert observer.narrator_s == {"on": 2, "slowed": 1, "off": 1}
    assert (observer.narrated().narrations, observer.narrated().narrations_withheld) == (1, {"cut": 2})
    assert [hour for hour, _ in observer.memory] == [0, 0.00028, 0.00056, 0.00083]
    assert 10 < resident_mb() < 100_000


def test_the_slope_is_that_of_the_samples_after_the_warm_up() -> None:
    samples = [(k / 60, 100 + (50 if k < 60 else 0) + 0.7 * k / 60) for k in range(600)]
    assert slope_mb_per_h(samples, 1.0) == pytest.approx(0.7)
    assert slope_mb_per_h(samples[:2], 0.0) is None
