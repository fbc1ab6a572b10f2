"""``vaemotion soak``: the schedule, the simulated devices, the judge, and a whole soak on a real bundle."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from runtime.clock import ManualClock
from runtime.controls import Controls
from runtime.faults import KINDS, Fault, Lane, schedule
from runtime.live import LiveFeed
from runtime.messages import Frame, Narration, Notice, Reading, Sound, Status
from runtime.predictor import open_predictor
from runtime.simulated import SimulatedCamera, SimulatedMicrophone, Truth
from runtime.sinks.outbox import CAPACITY, Outbox
from runtime.soak import Plan, rehearse, soak, write_soak
from runtime.soak_media import Recording, make_recording, record_files
from runtime.soak_observer import Observer, resident_mb, slope_mb_per_h
from runtime.soak_plot import path_shares
from runtime.soak_report import Soak, markdown, problems, sentences
from runtime.soak_world import SlowSink, World
from runtime.stop import Stop
from runtime.threads import ThreadBudget
from tests.media import tone, write_wav, write_work
from vaemotion.cli import main
from vaemotion.contract.errors import UsageError
from vaemotion.contract.media import MediaError

SHORT_H = 0.05


@pytest.fixture(scope="module")
def film() -> Recording:
    return make_recording(24, seed=0, duration_s=10)


# --- the schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [SHORT_H, 1.0, 24.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_has_every_kind_and_nothing_fails_twice_at_once(hours: float, seed: int) -> None:
    faults = schedule(hours * 3600, None, seed)
    assert faults == schedule(hours * 3600, None, seed)
    assert faults != schedule(hours * 3600, None, seed + 1)
    assert {fault.kind for fault in faults} == {kind.name for kind in KINDS}
    assert len(faults) >= 200 * hours / 24
    assert hours < 24 or len(faults) >= 200
    for name in {kind.lane for kind in KINDS}:
        lane = Lane(faults, name)
        assert all(a.end_s < b.start_s for a, b in pairwise(lane.faults))
    for fault in faults:
        assert 0 <= fault.start_s < fault.end_s < hours * 3600
        assert (fault.start_s == 0) == fault.kind.endswith("at boot")
        assert (fault.amount != 0) == (fault.kind == "clock skew")


def test_a_lane_tells_what_is_wrong_now() -> None:
    lane = Lane([Fault("silence", "microphone", 2, 4), Fault("darkness", "camera", 2, 9)], "microphone")
    told = [fault.kind if (fault := lane.at(time_s)) else None for time_s in (0, 1.9, 2, 3.9, 4, 50)]
    assert told == [None, None, "silence", "silence", None, None]


@pytest.mark.parametrize(
    ("hours", "count", "sentence"),
    [
        (1.0, 3, "at least 15"),
        (0.01, None, "or more, because the"),
        (0.1, 500, "fewer --faults or more --hours"),
    ],
)
def test_too_few_or_too_many_faults_are_refused(hours: float, count: int | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        schedule(hours * 3600, count, 0)


def test_the_documentation_names_every_kind() -> None:
    text = (Path(__file__).parents[2] / "docs" / "soak.md").read_text()
    assert not [kind.name for kind in KINDS if f"| {kind.name} |" not in text]


# --- the devices ------------------------------------------------------------------------------------------------------


def run_device(device: Any, end_s: float, step_s: float = 0.5) -> tuple[list[Any], list[str], list[float]]:
    """Everything that came, the state after each step, and when an interruption was told."""
    events, states, interrupted_s = [], [], []
    for k in range(round(end_s / step_s) + 1):
        new, interrupted = device.take(k * step_s)
        events += new
        states.append(device.watch.state)
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
    assert camera.watch.losses == 1
    assert not [frame for frame in frames(events) if 5 <= frame.time_s < 10]
    assert camera.truth.newest_s(9.0) == 4.5  # what came after that was lost with the stream
    assert camera.truth.newest_s(14.0) == 14.0
    assert [event.text for event in events if isinstance(event, Notice)][1] == "camera lost: no such device"


def test_a_frozen_camera_sends_the_same_picture_and_gives_nothing(film: Recording) -> None:
    camera = SimulatedCamera(film, [Fault("camera frozen", "camera", 5, 45)], 0)
    events, states, interrupted_s = run_device(camera, 50)
    assert states[12] == "frozen"
    assert len(interrupted_s) == 1  # after half a minute of the same picture it is opened again
    assert not [frame for frame in frames(events) if 5 <= frame.time_s < 45]
    assert camera.truth.newest_s(40.0) == 4.9
    assert states[-1] == "live"


def test_a_dark_camera_is_live_and_black(film: Recording) -> None:
    camera = SimulatedCamera(film, [Fault("darkness", "camera", 2, 20)], 0)
    events, states, _ = run_device(camera, 25)
    dark = [frame.picture() for frame in frames(events) if 2 <= frame.time_s < 20]
    assert len(dark) == 180
    assert max(picture.max() for picture in dark) == 1
    assert set(states[1:]) == {"live"}
    assert frames(events)[-1].picture().max() > 1


@pytest.mark.parametrize("device", [SimulatedCamera, SimulatedMicrophone])
def test_a_device_that_is_absent_at_boot_was_never_lost(film: Recording, device: Any) -> None:
    lane = device(film, [], 0).watch.name
    absent = device(film, [Fault(f"{lane} absent at boot", lane, 0, 6)], 0)
    _, states, interrupted_s = run_device(absent, 15)
    assert states[:12] == ["absent"] * 12
    assert states[-1] == "live"
    assert absent.watch.losses == 0
    assert not interrupted_s
    assert absent.truth.newest_s(5.9) is None


@pytest.mark.parametrize("kind", ["microphone unplugged", "microphone frozen"])
def test_a_microphone_stops_and_begins_anew(film: Recording, kind: str) -> None:
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


def test_truth_is_what_was_given_before() -> None:
    truth = Truth()
    assert truth.newest_s(1.0) is None
    for time_s in (1.0, 1.1, 1.2):
        truth.add(time_s)
    truth.cut()
    truth.add(5.0)
    assert [truth.newest_s(time_s) for time_s in (0.9, 1.15, 3.0, 5.0, 9.0)] == [None, 1.15, 1.2, 5.0, 5.0]


def test_recordings_are_files_or_made_up(tmp_path: Path) -> None:
    film = record_files(
        [write_work(tmp_path / "a.mkv", 2.0), write_wav(tmp_path / "b.wav", tone(1.0), 16_000)], 24
    )
    assert film.pictures.shape == (20, 24, 24, 3)
    assert len(film.samples) == pytest.approx(3 * 16_000, abs=400)
    with pytest.raises(MediaError, match="there are no pictures in"):
        record_files([tmp_path / "b.wav"], 24)
    made = make_recording(500, seed=1, duration_s=10)
    assert made.pictures.shape == (100, 160, 160, 3)
    assert made.samples.shape == (160_000,)
    assert np.abs(made.samples).max() <= 1.01
    assert made.pictures.std() > 10


# --- the world --------------------------------------------------------------------------------------------------------


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


def test_the_world_heats_up_speaks_to_the_controls_and_ends(controls: Controls) -> None:
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


# --- the judge --------------------------------------------------------------------------------------------------------


def reading(time_s: float, path: str) -> Reading:
    return Reading(
        time_s, 0.1, 0.2, 0.1, 0.1, {"awe": 1.0}, path, 0.0, 0.0
    )  # young, by the product's own word


def status(time_s: float, state: str, narrator: str = "on") -> Status:
    return Status(time_s, state, int(time_s), 0.0, 1.0, 0, False, 0.0, 0, 0, 0, narrator=narrator)


def observer_of(faults: list[Fault], camera: list[float], microphone: list[float]) -> Observer:
    """An observer of devices that gave evidence at these times, each the beginning of a stream and its end."""
    truths = {"camera": Truth(), "microphone": Truth()}
    for role, times_s in (("camera", camera), ("microphone", microphone)):
        for start_s, end_s in zip(times_s[::2], times_s[1::2], strict=True):
            truths[role].add(start_s)
            truths[role].add(end_s)
            truths[role].cut()
    return Observer(truths, faults, 100, 0.5, lambda _: None)


def test_a_value_without_evidence_is_stale_whatever_age_it_claims() -> None:
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
    observer.publish(Narration(2.0, 1.5, "A storm.", True))
    observer.publish(Narration(3.0, 1.5, "A", False))
    assert observer.states_s == {"empty": 1, "engaged": 2, "muted": 1}
    assert observer.state_changes == 2
    assert observer.narrator_s == {"on": 2, "slowed": 1, "off": 1}
    assert (observer.narrations, observer.incomplete) == (2, 1)
    assert [hour for hour, _ in observer.memory] == [0, 0.00028, 0.00056, 0.00083]
    assert 10 < resident_mb() < 100_000


def test_the_slope_is_that_of_the_samples_after_the_warm_up() -> None:
    samples = [(k / 60, 100 + (50 if k < 60 else 0) + 0.7 * k / 60) for k in range(600)]
    assert slope_mb_per_h(samples, 1.0) == pytest.approx(0.7)
    assert slope_mb_per_h(samples[:2], 0.0) is None


# --- a whole soak -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soaks(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two of the same seed."""
    found = []
    for name in ("one", "two"):
        out = tmp_path_factory.mktemp("soak") / name
        assert soak(small_bundle, SHORT_H, "max", None, 5, out, narrate_every_s=8.0) == 0
        found.append(json.loads((out / "soak.json").read_text()) | {"folder": out})
    return found


def test_a_short_soak_has_every_fault_and_passes(soaks: list[dict[str, Any]]) -> None:
    found = soaks[0]
    assert set(found["faults_by_kind"]) == {kind.name for kind in KINDS}
    assert found["problems"] == []
    assert found["stale"] == 0
    assert found["hours"] == SHORT_H
    assert found["moments"] == 360
    assert found["readings"] == sum(found["paths"].values()) > 180
    assert all(count > 0 for count in found["paths"].values())
    assert set(found["states_s"]) >= {"muted", "degraded"}
    assert {"on", "slowed"} <= set(found["narrator_s"])  # the heat
    assert found["narrations"] > 3
    assert found["slope_mb_per_h"] is not None
    assert 0 < found["clock_error_ms"] < 20
    assert found["missed_narrating"] <= found["missed"]
    assert found["dropped"]["messages to the report"] == 0
    for device in found["devices"].values():
        assert device["outages"] == 3
        assert device["losses"] == 2
        assert 2 <= len(device["back_s"]) <= 3
        assert max(device["back_s"]) <= 6


def test_the_same_seed_gives_the_same_readings(soaks: list[dict[str, Any]]) -> None:
    one, two = soaks
    assert one["readings_sha256"] == two["readings_sha256"]
    same = ("faults", "paths", "states_s", "narrator_s", "timeline", "devices", "clock_error_ms", "encodes")
    assert {key: one[key] for key in same} == {key: two[key] for key in same}


def test_the_report_is_for_people_too(soaks: list[dict[str, Any]]) -> None:
    folder = soaks[0]["folder"]
    text = (folder / "soak.md").read_text()
    assert text.startswith("# small: a soak of 3 min 00 s\n\nPassed.\n")
    assert "| camera frozen | 1 |" in text
    assert soaks[0]["readings_sha256"] in text
    assert (folder / "soak.png").read_bytes().startswith(b"\x89PNG")


def recorded(found: dict[str, Any]) -> Soak:
    """The record of a report."""
    from runtime.soak_report import DeviceRecord

    values = {name: found[name] for name in Soak.__dataclass_fields__}
    values["faults"] = tuple(Fault(**fault) for fault in values["faults"])
    values["devices"] = {role: DeviceRecord(**device) for role, device in values["devices"].items()}
    return Soak(**values)


def test_each_condition_that_is_not_met_is_one_sentence(soaks: list[dict[str, Any]], tmp_path: Path) -> None:
    passed = recorded(soaks[0])
    assert problems(passed) == []
    growing = replace(passed, slope_mb_per_h=3.0)
    assert problems(growing) == []  # a soak of minutes says nothing about memory
    assert problems(replace(growing, hours=4.0)) == [
        "memory grew by 3.00 MB per simulated hour, allowed is 1"
    ]
    failed = replace(
        growing, hours=4.0, stale=2, stale_examples=("at 1 s",), clock_error_ms=21.5, failure="ValueError: no"
    )
    lines = problems(failed)
    assert len(lines) == 4
    assert lines[0] == "the run failed after 4 h 00 min: ValueError: no"
    assert "2 stale values published as live, the first: at 1 s" in lines
    assert "Failed: the run failed after" in markdown(failed)
    assert [file.name for file in write_soak(failed, tmp_path)] == ["soak.json", "soak.md", "soak.png"]
    assert any("judged from 3 h on" in line for line in sentences(passed))


def test_the_shares_of_the_timeline_add_up(soaks: list[dict[str, Any]]) -> None:
    shares = path_shares(recorded(soaks[0]))
    assert shares.shape[1] == len(soaks[0]["timeline"])
    assert shares.min() >= 0
    assert shares.sum(axis=0) == pytest.approx(1)
    assert shares[:3].sum() == pytest.approx(soaks[0]["readings"] * soaks[0]["moment_s"] / soaks[0]["bin_s"])


def test_what_ends_a_run_is_told_and_reported(small_bundle: Path, film: Recording) -> None:
    broken = Recording(film.pictures, film.samples.astype("<U8"))  # no microphone gives text
    faults = schedule(SHORT_H * 3600, None, 0)
    plan = Plan(small_bundle, "nothing", SHORT_H, "max", None, faults, 0, 1, 0.0)
    with open_predictor(small_bundle, threads=ThreadBudget(1, 1)) as predictor:
        found = rehearse(plan, predictor, broken, Stop(), Console(quiet=True))
    assert found.failure is not None
    assert 0 < found.hours < SHORT_H
    assert problems(found)[0].startswith("the run failed after")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--speed", "fast"], "--speed must be max, real, or simulated seconds"),
        (["--hours", "0.02"], "needs 24 s for each"),
        (["--hours", "9999999"], "at most a year"),
        (["--faults", "4"], "--faults must be at least 15"),
    ],
)
def test_wrong_usage_is_told(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["soak", str(small_bundle), *options]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
