"""A live run outlives what its disk and its microphone do, says so once a minute, and loses what it says."""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from runtime.clock import ManualClock
from runtime.commands.timeline.read import read_timeline
from runtime.config import LiveConfig
from runtime.live_session import LiveSession
from runtime.machine.stop import Stop
from runtime.messages import End, Frame, Message, Notice, Reading, Sound, Start, Status
from runtime.perception.perception import Perception
from runtime.perception.recorder import FeatureRecorder, PartLimits
from runtime.perception.replay import replay
from runtime.run import build_session
from runtime.show.controls import ControlState
from runtime.show.show import ShowConfig
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.outbox import Outbox, Sink
from runtime.sinks.publisher import Publisher
from runtime.sources.feed import Event
from runtime.sources.supervision import DeviceMonitor, LiveFeed
from tests.live_peers import until
from tests.media import tone as seconds_of_tone
from tests.paths import ROOT
from tests.runtime.perception.stub_predictor import stub_predictor
from vaemotion.cli.main import main

START = Start("tiny", "0" * 64, "camera and microphone", "real", (), {}, "0.1")
SHA256 = "0" * 64
NO_SMOOTHING = LiveConfig(show=ShowConfig(smoothing_s=0.0))


class Kept:
    """A sink that keeps its messages."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def publish(self, message: Message) -> None:
        self.messages.append(message)

    def close(self) -> None:
        """Nothing to close."""

    def of(self, kind: type) -> list:
        return [message for message in self.messages if isinstance(message, kind)]

    def told(self, word: str) -> list[tuple[float, str]]:
        return [(notice.time_s, notice.text) for notice in self.of(Notice) if word in notice.text]


class Counted:
    """A sink that counts the messages that it was given, also those that it could not write."""

    def __init__(self, sink: Sink) -> None:
        self.sink, self.taken = sink, 0

    def publish(self, message: Message) -> None:
        try:
            self.sink.publish(message)
        finally:
            self.taken += 1

    def close(self) -> None:
        self.sink.close()


class FakeDevice:
    """A device that gives an event at every tick."""

    dropped = 0

    def __init__(self, name: str, make: Callable[[float], Event]) -> None:
        self.monitor, self.make = DeviceMonitor(name), make

    def take(self, now_s: float) -> tuple[list[Event], bool]:
        event = self.make(now_s)
        self.monitor.add_evidence(now_s)
        return [event, *self.monitor.step(now_s)], False

    def close(self) -> None:
        """Nothing to close."""


def live_run(
    sinks: dict[str, Sink],
    at_tick: Callable[[int], None],
    ticks: int,
    samples: Callable[[int], np.ndarray],
    recorder: FeatureRecorder | None = None,
    picture: Callable[[int], np.ndarray] = lambda tick: np.full((48, 64, 3), 40 + tick % 150, np.uint8),
) -> Kept:
    """Run a live session on a simulated clock; return what every sink was told.

    ``at_tick`` is called before each tick, ``samples`` gives its sound, ``picture`` converts its frame.
    """
    clock, stop, kept = ManualClock(), Stop(), Kept()
    counted = {name: Counted(sink) for name, sink in {**sinks, "kept": kept}.items()}
    boxes = [Outbox(name, sink, "drop-oldest", stop) for name, sink in counted.items()]

    def frame(now_s: float) -> Frame:
        tick = round(now_s * 10)
        # At least one message a tick: the sinks keep up with the simulated clock.
        until(lambda: min(sink.taken for sink in counted.values()) >= tick - 100, "the sinks")
        at_tick(tick)
        if tick >= ticks:
            stop.set()
        return Frame(now_s, lambda: picture(tick))

    devices = {
        "camera": FakeDevice("camera", frame),
        "microphone": FakeDevice("microphone", lambda now_s: Sound(now_s, samples(round(now_s * 10)))),
    }
    feed = LiveFeed(devices, clock)
    presenter = LiveSession(NO_SMOOTHING, feed, clock, 0.1, ControlState(), stop)
    publisher = Publisher(boxes, status_to_all=True)
    perception = Perception(stub_predictor(), recorder)
    build_session(perception, feed, clock, stop, presenter, publisher).run(START)
    if recorder is not None:
        recorder.close()
    return kept


def tone(tick: int) -> np.ndarray:
    time_s = tick / 10 + np.arange(1600) / 16_000
    return (0.2 * np.sin(2 * np.pi * (300 + 50 * (tick % 7)) * time_s)).astype(np.float32)


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Path]:
    """Yield a disk of 600 kB with room for 24 files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=600k,nr_inodes=25", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("only root may mount, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "others").open("wb") as file:
        while True:
            try:
                os.write(file.fileno(), b"x" * 100)
            except OSError:
                return


def parts(file: Path) -> list[Path]:
    """Return a file and its older parts, the oldest first."""
    return [*sorted(file.parent.glob(f"{file.name}.[0-9]"), reverse=True), file]


def heard(reading: Reading) -> tuple[float | None, ...]:
    return reading.time_s, reading.valence, reading.arousal, reading.visual_age_s, reading.audio_age_s


@pytest.mark.parametrize("rotated", [True, False])
def test_a_disk_that_is_full_for_a_minute_costs_what_was_written_then_and_is_told(
    disk: Path, rotated: bool
) -> None:
    timeline, features = disk / "timeline", disk / "features"
    limits = PartLimits(60_000, 1)

    def at_tick(tick: int) -> None:
        if tick == 60:
            fill(disk)
        if tick == 600:
            (disk / "others").unlink()

    sink = JsonLines(str(timeline), live=True, max_bytes=40_000 if rotated else None, keep=2)
    recorder = FeatureRecorder(features, SHA256, stub_predictor().constants, limits)
    kept = live_run({"jsonl:timeline": sink}, at_tick, 800, tone, recorder)

    [end] = kept.of(End)
    assert (end.reason, end.readings) == ("interrupted", 800)
    lost = {name: count for name, count in end.dropped.items() if count}
    assert set(lost) == {"messages to jsonl:timeline", "recorded readings"}
    for what, name in (("messages to jsonl:timeline", "jsonl"), ("recorded readings", "recorded")):
        told = kept.told(name)
        assert len(told) == 2
        assert all(later - earlier >= 60 for (earlier, _), (later, _) in itertools.pairwise(told))
        assert told[0][1].startswith(f"{what} lost so far: ")
        assert "No space left on device" in told[0][1]
        assert told[-1][1].endswith("; none now")
        assert f" {lost[what]} (" in told[-1][1]
        assert kept.of(Status)[-1].lost[what] == lost[what]

    # Whole lines, each file a timeline of its own, within its bound.
    lines = 0
    for file in parts(timeline):
        first, *rest = [json.loads(line) for line in file.read_bytes().splitlines()]
        assert first["type"] == "start"
        assert not rotated or file.stat().st_size <= 40_000
        lines += len(rest)
    assert json.loads(timeline.read_bytes().splitlines()[-1])["type"] == "end"
    if not rotated:
        assert lines + lost["messages to jsonl:timeline"] == len(kept.messages) - 1

    # Each part of the recording gives the readings of the run, bit for bit.
    published = {reading.time_s: heard(reading) for reading in kept.of(Reading)}
    again: list[float] = []
    for part in parts(features):
        assert part.stat().st_size < limits.max_bytes + 2000
        assert part.stat().st_mode & 0o777 == 0o600
        for evidence in replay(part, SHA256, Perception(stub_predictor())):
            assert heard(evidence.reading) == published[evidence.reading.time_s]
            again.append(evidence.reading.time_s)
    assert again == sorted(again)
    assert again[-1] == kept.of(Reading)[-1].time_s
    assert len(parts(features)) == 2


@pytest.mark.parametrize("what", ["bytes", "names"])
def test_a_live_run_starts_on_a_full_disk_and_writes_when_there_is_room(disk: Path, what: str) -> None:
    (disk / "timeline").write_text('{"type": "start", "earlier": true}\n')
    fillers = [disk / f"f{k}" for k in range(30)]
    if what == "bytes":
        fill(disk)
    else:
        for filler in fillers:
            try:
                filler.touch()
            except OSError:
                break

    def at_tick(tick: int) -> None:
        if tick == 150:
            for filler in (disk / "others", *fillers):
                filler.unlink(missing_ok=True)

    sink = JsonLines(str(disk / "timeline"), live=True, max_bytes=100_000, keep=2)
    recorder = FeatureRecorder(disk / "features", SHA256, stub_predictor().constants, PartLimits(50_000, 1))
    kept = live_run({"jsonl:timeline": sink}, at_tick, 300, tone, recorder)
    assert kept.of(End)[0].readings == 300
    assert "No space left on device" in kept.told("jsonl")[0][1]
    assert b"earlier" in (disk / "timeline.1").read_bytes()
    records = [json.loads(line) for line in (disk / "timeline").read_bytes().splitlines()]
    assert [records[0]["type"], records[-1]["type"]] == ["start", "end"]
    again = [e.reading.time_s for e in replay(disk / "features", SHA256, Perception(stub_predictor()))]
    assert 140 <= len(again) <= 151
    assert again[-1] == pytest.approx(29.9)


def test_a_console_without_room_does_not_end_the_run() -> None:
    class Full(Kept):
        def publish(self, message: Message) -> None:
            raise OSError(28, os.strerror(28))

    kept = live_run({"console": Full()}, lambda tick: None, 100, tone)
    assert kept.of(End)[0].readings == 100
    assert kept.told("console")[0][1].startswith("messages to console lost so far: ")


def test_a_restart_keeps_what_the_run_before_recorded(tmp_path: Path) -> None:
    constants = stub_predictor().constants
    for run in range(3):
        recorder = FeatureRecorder(tmp_path / "features", SHA256, constants, PartLimits(10**6, 4))
        live_run({}, lambda tick: None, 20 + run, tone, recorder)
    counts = [
        len(list(replay(part, SHA256, Perception(stub_predictor())))) for part in parts(tmp_path / "features")
    ]
    assert counts == [20, 21, 22]


def test_a_sound_file_with_numbers_without_meaning_is_heard_where_it_has_some(tmp_path: Path) -> None:
    samples = seconds_of_tone(4.0).astype(np.float32)
    samples[16_000:24_000] = np.nan
    samples[30_000] = np.inf
    kind = struct.pack("<4sIHHIIHH", b"fmt ", 18, 3, 1, 16_000, 64_000, 4, 32)  # floats, one channel
    head = struct.pack("<4sI4s", b"RIFF", 50 + 4 * len(samples), b"WAVE") + kind
    data = struct.pack("<H4sI", 0, b"data", 4 * len(samples)) + samples.tobytes()
    (tmp_path / "broken.wav").write_bytes(head + data)
    bundle, timeline = ROOT / "models" / "vaemotion-tiny-bundle", tmp_path / "timeline"
    words = ["run", str(bundle), str(tmp_path / "broken.wav"), "--pace", "max", "--narrate-every", "0"]
    assert main([*words, "--out", f"jsonl:{timeline}"]) == 0
    read = read_timeline(timeline)
    assert len(read.readings) > 25
    assert all(math.isfinite(reading.valence) for reading in read.readings)
    assert b"NaN" not in timeline.read_bytes()
    assert read.notices


def test_a_microphone_that_gives_numbers_without_meaning_is_told_and_the_run_goes_on() -> None:
    def samples(tick: int) -> np.ndarray:
        return np.full(1600, np.nan, np.float32) if 50 <= tick < 700 else tone(tick)

    kept = live_run({}, lambda tick: None, 800, samples)
    assert kept.of(End)[0].readings == 800
    told = kept.told("samples of sound")
    assert [time_s for time_s, _ in told] == pytest.approx([5.0, 65.0])
    assert "not finite" in told[0][1]
    assert kept.of(Status)[-1].lost == {"samples of sound": 650 * 1600}


def test_frames_that_cannot_be_converted_are_told_and_the_run_goes_on() -> None:
    def picture(tick: int) -> np.ndarray:
        if 50 <= tick < 700:
            raise (MemoryError, av.error.InvalidDataError(1094995529, "bad frame"))[tick % 2]
        return np.full((48, 64, 3), 90 if tick != 720 else 0, np.uint8)[: 0 if tick == 720 else None]

    kept = live_run({}, lambda tick: None, 800, tone, picture=picture)
    [end] = kept.of(End)
    assert (end.reason, end.readings) == ("interrupted", 800)
    assert end.dropped["camera frames"] == kept.of(Status)[-1].lost["camera frames"] == 651
    told = kept.told("camera frames")
    assert [time_s for time_s, _ in told] == pytest.approx([5.0, 65.0])
    assert told[0][1] == "camera frames lost so far: 1 (MemoryError)"
    # Old frames are not passed off as new ones.
    paths = {round(reading.time_s * 10): reading.path for reading in kept.of(Reading)}
    assert {paths[tick] for tick in range(62, 700)} == {"audio"}
    assert paths[49] == paths[701] == "audio-visual"


def test_a_film_whose_frame_cannot_be_converted_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(*_: object) -> np.ndarray:
        raise MemoryError

    file = tmp_path / "film.png"
    file.write_bytes(cv2.imencode(".png", np.full((48, 64, 3), 90, np.uint8))[1].tobytes())
    monkeypatch.setattr("runtime.sources.file._frame", lambda shown, _: Frame(shown.time_s, convert))
    words = ["run", str(ROOT / "models" / "vaemotion-tiny-bundle"), str(file), "--pace", "max"]
    assert main([*words, "--narrate-every", "0", "--out", f"jsonl:{tmp_path / 'timeline'}"]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert line == "vaemotion: error: not enough memory; close other programs, or ask for less"
