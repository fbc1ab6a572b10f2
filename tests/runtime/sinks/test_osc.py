"""OSC over real UDP on loopback, as docs/osc.md specifies it, with oscpy as the peer."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oscpy.parser import format_bundle, format_message, read_bundle
from pythonosc.osc_bundle import OscBundle
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message import OscMessage
from pythonosc.osc_message_builder import OscMessageBuilder

from runtime.clock import ManualClock
from runtime.commands.timeline.read import read_timeline
from runtime.endpoints import is_within, parse_networks
from runtime.file_session import FilePresenter
from runtime.machine.stop import Stop
from runtime.machine.threads import ThreadBudget
from runtime.messages import Narration, Notice, Reading, Start
from runtime.perception.perception import Perception
from runtime.perception.predictor import open_predictor
from runtime.perception.ticks import IntakeOptions
from runtime.run import build_session, describe
from runtime.show.controls import MAX_IGNORE_S, Control, Controls, ControlState, parse_controls
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.osc import PREFIX, OscSink
from runtime.sinks.outbox import Outbox
from runtime.sinks.publisher import Publisher
from runtime.sinks.targets import parse_sink
from runtime.sources.feed import Arrived, Feed
from runtime.sources.file import FileFeed, FileSource
from runtime.stage_times import StageTimes
from tests.live_peers import PATIENCE_S, until
from tests.media import tone, write_wav, write_work
from tests.paths import ROOT
from vaemotion.cli.main import main
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError

READY = ROOT / "models" / "vaemotion-tiny-bundle"  # it narrates, which a random model does not
DOCUMENT = ROOT / "docs" / "osc.md"
LOOPBACK = "127.0.0.1"
ETHERNET_BYTES = 1500 - 20 - 8  # of an Ethernet frame behind the headers of IP and UDP
TYPES = {"f": float, "i": int, "s": bytes}

Bundle = dict[str, float | int | bytes]
Script = Sequence[tuple[float, str, list[float]]]  # time, address and arguments of each control


class Peer:
    """A receiver and a sender of OSC by oscpy."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((LOOPBACK, port))
        self._socket.settimeout(PATIENCE_S)
        self.port: int = self._socket.getsockname()[1]
        self.packets: list[bytes] = []

    def bundle(self) -> Bundle:
        """Receive the next packet: a bundle of messages with one argument each, no address twice."""
        self.packets.append(self._socket.recv(65_536))
        assert self.packets[-1].startswith(b"#bundle\0" + bytes(7) + b"\1")  # "immediately"
        _, messages = read_bundle(self.packets[-1])
        values = {address.decode(): value for address, _, (value,), _ in messages}
        assert len(values) == len(messages)
        return values

    def until_the_end(self) -> list[Bundle]:
        bundles = [self.bundle()]
        while bundles[-1].get(f"{PREFIX}/status/state") != b"ended":
            bundles.append(self.bundle())
        return bundles

    def send(self, port: int, address: str, values: list[float]) -> None:
        self._socket.sendto(format_message(address.encode(), values)[0], (LOOPBACK, port))

    def send_raw(self, port: int, packet: bytes) -> None:
        self._socket.sendto(packet, (LOOPBACK, port))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def peer():
    with contextlib.closing(Peer()) as made:
        yield made


class Scripted:
    """A feed before whose ticks the peer sends controls, each waited for, so that timing has no effect."""

    def __init__(self, feed: Feed, script: Script, peer: Peer, controls: Controls) -> None:
        self.dropped, self.times = feed.dropped, feed.times
        self._feed, self._script, self._peer, self._controls = feed, list(script), peer, controls

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        while self._script and self._script[0][0] <= time_s + 1e-6:
            _, address, values = self._script.pop(0)
            send_and_wait(self._peer, self._controls, address, values)
        return self._feed.until(time_s, stop)

    def close(self) -> None:
        self._feed.close()


class EmptyFeed:
    """A feed without any input, of some duration."""

    def __init__(self, clock: ManualClock, duration_s: float) -> None:
        self.dropped: dict[str, int] = {}
        self.times = StageTimes()
        self._clock, self._duration_s = clock, duration_s

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        self._clock.sleep_until(time_s, stop)
        over = time_s >= self._duration_s
        return Arrived(frames_end_s=self._duration_s if over else None, over=over)

    def close(self) -> None:
        pass


def send_and_wait(peer: Peer, controls: Controls, address: str, values: list[float]) -> None:
    """Send a control and wait until it has arrived."""
    before = controls.packets
    peer.send(controls.port, address, values)
    until(lambda: controls.packets > before, poll_s=0.005)


def run_with_controls(
    bundle: Path, file: Path, peer: Peer, timeline: Path, script: Script = (), narrate_every_s: float = 0.0
) -> list[Bundle]:
    """Run at full pace and return the bundles that the peer received."""
    source, clock, stop = FileSource(file), ManualClock(), Stop()
    with (
        open_predictor(bundle, threads=ThreadBudget(1, 1)) as predictor,
        contextlib.closing(Controls(LOOPBACK, 0)) as controls,
        contextlib.closing(Scripted(FileFeed(source, clock), script, peer, controls)) as feed,
    ):
        boxes = [
            Outbox("osc:peer", OscSink(LOOPBACK, peer.port), "wait", stop),
            Outbox("jsonl", JsonLines(str(timeline)), "wait", stop),
        ]
        presenter = FilePresenter(narrate_every_s, ControlState(controls), clock)
        options = IntakeOptions(source.has_frames, source.has_sound)
        session = build_session(
            Perception(predictor), feed, clock, stop, presenter, Publisher(boxes), options
        )
        session.run(describe(bundle, file.name, "max", predictor))
    return peer.until_the_end()


def reading(time_s: float) -> Reading:
    emotions = {name: 1 / len(EMOTIONS) for name in EMOTIONS}
    return Reading(time_s, 0.3, -0.4, 0.1, 0.2, emotions, "visual", 0.05, None, 12.5)


def times(bundles: list[Bundle]) -> list[float]:
    return [float(b[f"{PREFIX}/time_s"]) for b in bundles if f"{PREFIX}/time_s" in b]


def documented() -> dict[str, tuple[str, float, float]]:
    """Return each address of the document with its type and range."""
    rows = re.findall(r"^\| `(/vaemotion/1/\S+)` \| ([fis]) \|[^|]*\|([^|]*)\|", DOCUMENT.read_text(), re.M)
    table = {}
    for address, kind, interval in rows:
        low, _, high = interval.partition("…")
        table[address] = (kind, float(low.strip() or "-inf"), float(high.strip() or "inf"))
    assert len(table) == len(rows)
    return table


def test_any_name_of_an_emotion_is_one_part_of_an_address(peer: Peer) -> None:
    names = {"joy / happiness": 0.5, "#1?": 0.25, "Ärger": 0.25}
    with contextlib.closing(OscSink(LOOPBACK, peer.port)) as sink:
        sink.publish(replace(reading(2.5), emotions=names))
    got = {address: value for address, value in peer.bundle().items() if "/emotion/" in address}
    assert got == {
        f"{PREFIX}/emotion/joy___happiness": 0.5,
        f"{PREFIX}/emotion/_1_": 0.25,
        f"{PREFIX}/emotion/_rger": 0.25,
    }


def test_a_reading_is_one_bundle_with_every_value_and_its_type(peer: Peer) -> None:
    with contextlib.closing(OscSink(LOOPBACK, peer.port)) as sink:
        sink.publish(reading(2.5))
    got = peer.bundle()
    assert len(peer.packets[0]) <= ETHERNET_BYTES
    assert got == {
        f"{PREFIX}/time_s": 2.5,
        f"{PREFIX}/valence": pytest.approx(0.3),
        f"{PREFIX}/arousal": pytest.approx(-0.4),
        f"{PREFIX}/spread/valence": pytest.approx(0.1),
        f"{PREFIX}/spread/arousal": pytest.approx(0.2),
        **{f"{PREFIX}/emotion/{n.replace(' ', '_')}": pytest.approx(1 / len(EMOTIONS)) for n in EMOTIONS},
        f"{PREFIX}/path": b"visual",
        f"{PREFIX}/age/visual_s": pytest.approx(0.05),
        f"{PREFIX}/age/audio_s": -1.0,
        f"{PREFIX}/latency_ms": 12.5,
        f"{PREFIX}/confidence": -1.0,
        f"{PREFIX}/interval/valence": -1.0,
        f"{PREFIX}/interval/arousal": -1.0,
        f"{PREFIX}/label": b"",
        f"{PREFIX}/state": b"",
    }


def test_a_text_is_cut_at_a_whole_character_and_holds_no_zero(peer: Peer) -> None:
    with contextlib.closing(OscSink(LOOPBACK, peer.port)) as sink:
        sink.publish(Narration(1.0, 0.5, "a\0b" + "é" * 600))
    text = peer.bundle()[f"{PREFIX}/narration"]
    assert isinstance(text, bytes)
    assert text.decode() == r"a\x00b" + "é" * 497


def test_a_run_sends_exactly_the_documented_addresses(tmp_path: Path, peer: Peer) -> None:
    clip, table = write_work(tmp_path / "clip.mkv", 2.5), documented()
    script = [(1.5, "/control/ignore_audio", [0.3])]
    bundles = run_with_controls(READY, clip, peer, tmp_path / "t", script, narrate_every_s=1.0)
    assert {address for b in bundles for address in b} == set(table)
    for address, value in ((a, v) for b in bundles for a, v in b.items()):
        kind, low, high = table[address]
        assert type(value) is TYPES[kind], address
        assert isinstance(value, bytes) or low <= value <= high, (address, value)
    assert times(bundles) == pytest.approx([k / 10 for k in range(26)], abs=1e-5)
    readings = read_timeline(tmp_path / "t").readings
    valences = [b[f"{PREFIX}/valence"] for b in bundles if f"{PREFIX}/valence" in b]
    assert valences == pytest.approx([r.valence for r in readings], abs=1e-6)


def test_the_heartbeat_goes_on_without_readings(small_bundle: Path, tmp_path: Path, peer: Peer) -> None:
    clip = write_work(tmp_path / "clip.mkv", 0.5, sound=False)
    clock, stop = ManualClock(), Stop()
    with open_predictor(small_bundle, threads=ThreadBudget(1, 1)) as predictor:
        publisher = Publisher([Outbox("osc:peer", OscSink(LOOPBACK, peer.port), "wait", stop)])
        presenter = FilePresenter(0.0, ControlState(), clock)
        options = IntakeOptions(has_sound=False)
        session = build_session(
            Perception(predictor), EmptyFeed(clock, 3.5), clock, stop, presenter, publisher, options
        )
        with pytest.raises(UserError, match="no video frame or audio"):
            session.run(describe(small_bundle, clip.name, "max", predictor))
    bundles = peer.until_the_end()
    assert [b[f"{PREFIX}/heartbeat"] for b in bundles if f"{PREFIX}/heartbeat" in b] == [0, 1, 2, 3]
    assert times(bundles) == []
    reason = bundles[-1][f"{PREFIX}/status/reason"]
    assert isinstance(reason, bytes)
    assert reason.startswith(b"failed: ")


def test_a_muted_show_gets_the_heartbeat_only_and_the_timeline_goes_on(tmp_path: Path, peer: Peer) -> None:
    clip = write_work(tmp_path / "clip.mkv", 2.5)
    script = [(0.5, "/control/mute", []), (2.1, "/vaemotion/1/control/resume", [1.0])]
    bundles = run_with_controls(READY, clip, peer, tmp_path / "t", script, narrate_every_s=1.0)
    assert times(bundles) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 2.1, 2.2, 2.3, 2.4, 2.5], abs=1e-5)
    assert not any(f"{PREFIX}/narration" in b for b in bundles)  # it was made while the show was muted
    statuses = [b for b in bundles if f"{PREFIX}/status/muted" in b]
    beats = [(b.get(f"{PREFIX}/heartbeat"), b[f"{PREFIX}/status/muted"]) for b in statuses]
    assert beats == [(0, 0), (None, 1), (1, 1), (2, 1), (None, 0)]
    timeline = read_timeline(tmp_path / "t")
    assert len(timeline.readings) == 26
    assert len(timeline.narrations) == 1
    sender = f"control received from {LOOPBACK}"
    assert [n.text for n in timeline.notices] == [f"{sender}: mute", f"{sender}: resume"]


def test_ignored_sound_leaves_the_visual_path_and_comes_back(
    small_bundle: Path, tmp_path: Path, peer: Peer
) -> None:
    clip = write_work(tmp_path / "clip.mkv", 2.5)
    script = [(0.5, "/control/ignore_audio", [1.5])]
    run_with_controls(small_bundle, clip, peer, tmp_path / "t", script)
    path_at = {round(r.time_s, 1): r.path for r in read_timeline(tmp_path / "t").readings}
    assert {path_at[k / 10] for k in range(15, 21)} == {"visual"}  # the sound of 0.4 s is a second old
    assert {path_at[k / 10] for k in (*range(4, 15), *range(21, 26))} == {"audio-visual"}
    assert {path_at[k / 10] for k in range(1, 4)} == {"visual"}  # less sound than its calibration began with


def test_ignored_sound_changes_no_reading(small_bundle: Path, tmp_path: Path, peer: Peer) -> None:
    quiet = tone(3.0, hertz=300.0) / 8
    loud = quiet.copy()
    loud[8_000:19_200] += np.random.default_rng(0).uniform(-0.5, 0.5, 11_200).astype(np.float32)
    values = {}
    for name, samples in (("quiet", quiet), ("loud", loud)):
        file = write_wav(tmp_path / f"{name}.wav", samples, 16_000)
        for script in ((), [(0.5, "/control/ignore_audio", [0.7])]):
            run_with_controls(small_bundle, file, peer, tmp_path / "t", script)
            values[name, bool(script)] = [
                (r.time_s, r.valence) for r in read_timeline(tmp_path / "t").readings
            ]
    assert values["quiet", False] != values["loud", False]
    assert values["quiet", True] == values["loud", True]


def test_the_newest_ignore_audio_counts_and_zero_ends_it() -> None:
    with contextlib.closing(Controls(LOOPBACK, 0)) as controls, contextlib.closing(Peer()) as peer:
        state, ignoring = ControlState(controls), []
        script = {1: [30.0], 3: [0.1], 6: [30.0], 8: [0]}
        for tick in range(11):
            if tick in script:
                send_and_wait(peer, controls, "/control/ignore_audio", script[tick])
            state.apply(tick / 10)
            ignoring.append(state.ignoring_audio)
    assert [tick for tick, ignored in enumerate(ignoring) if ignored] == [1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\n",
        b"/control/mute",  # no zero behind it
        b"/control/mute\0\0\0,x\0\0",
        b"/control/mute\0\0\0,f\0\0\0",
        format_message(b"/control/mute", [1.0])[0] + b"\0\0\0\0",
        format_message(b"/control/mute", [b"now"])[0],
        format_message(b"/control/ignore_audio", [])[0],
        format_message(b"/control/ignore_audio", [-1.0])[0],
        format_message(b"/control/ignore_audio", [float("nan")])[0],
        format_message(b"/control/ignore_audio", [float("inf")])[0],
        format_message(b"/control/ignore_audio", [MAX_IGNORE_S + 1])[0],
        format_message(b"/control/ignore_audio", [1.0, 2.0])[0],
        format_message(b"/control/*", [])[0],
        format_message(b"/vaemotion/2/control/mute", [])[0],
        format_message(b"/another/program", [1])[0],
        b"/control/mute\0\0\0,i\0\0\0\0",  # half a number
        b"/control/mute\0\0\0,[]\0",
        b"/control/mute\0\0\0,b\0\0\0\0\0\1\1\0\0\0",
        b"/control/mute\0\0\0,r\0\0\0\0\0\1",
        b"/control/mute\0\0\0,t\0\0\0\0\0\0\0\0\0\1",
        b"/control/mute\0\0\0,c\0\0\0\0\0x",
        b"/control/mute\0\0\0,s\0\0\0\0\0\0",
        b"/control/mute\0\0\0,s\0\0inf\0",
        b"/control/mute" + b"\0" * 255,
        b"#bundle\0" + bytes(8) + b"\0",
        b"#bundle\0" + bytes(3),
        b"#bundle\0" + bytes(8) + b"\0\0\0\0",
        b"#bundle\0" + bytes(8) + b"\x7f\xff\xff\xff",
        "/control/müte\0\0\0,\0\0\0".encode("latin-1"),
    ],
)
def test_malformed_and_foreign_packets_are_counted_and_the_next_control_is_applied(
    peer: Peer, packet: bytes
) -> None:
    with contextlib.closing(Controls(LOOPBACK, 0)) as controls:
        peer.send_raw(controls.port, packet)
        peer.send(controls.port, "/control/mute", [])
        until(lambda: controls.packets == 2)
        assert controls.take() == [Control("mute")]
        assert controls.ignored == 1


def test_ten_thousand_damaged_packets_are_controls_or_refused() -> None:
    chance = random.Random(0)
    whole = [
        format_message(b"/control/ignore_audio", [2.5])[0],
        format_message(b"/control/mute", [1])[0],
        format_bundle([(b"/control/resume", []), (b"/control/ignore_audio", [1])])[0],
    ]
    refused = 0
    for _ in range(10_000):
        packet = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 4)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        controls, ignored = parse_controls(bytes(packet[: chance.randint(0, len(packet))]))
        assert all(0 <= control.seconds <= MAX_IGNORE_S for control in controls)
        refused += ignored > 0
    assert refused > 5_000


@pytest.mark.parametrize(
    ("allow", "taken"),
    [
        ((), True),
        ((LOOPBACK,), True),
        (("192.0.2.1", "127.0.0.0/8"), True),
        (("192.0.2.1",), False),
        (("10.0.0.0/8", "::/0"), False),
    ],
)
def test_controls_are_taken_of_allowed_senders_only(allow: tuple[str, ...], taken: bool, peer: Peer) -> None:
    with contextlib.closing(Controls(LOOPBACK, 0, allow)) as controls:
        send_and_wait(peer, controls, "/control/mute", [])
        state = ControlState(controls)
        notices = state.apply(0.0)
    assert state.muted == taken
    assert (state.applied, state.ignored) == ((1, 0) if taken else (0, 1))
    assert [notice.text for notice in notices] == [f"control received from {LOOPBACK}: mute"] * taken


def test_an_allowed_ipv4_sender_may_come_by_ipv6() -> None:
    networks = parse_networks(["192.168.1.30", "fe80::/10"])
    assert is_within("::ffff:192.168.1.30", networks)
    assert is_within("fe80::1%eth0", networks)
    assert not is_within("::ffff:192.168.1.31", networks)


def test_a_control_that_changes_nothing_is_counted_and_changes_are_told_once_a_second(peer: Peer) -> None:
    told: list[tuple[float, str]] = []
    with contextlib.closing(Controls(LOOPBACK, 0)) as controls:
        state = ControlState(controls)
        for tick in range(30):  # of a show that sends resume with every frame, and moods for a second
            send_and_wait(peer, controls, "/control/resume", [])
            if 5 <= tick < 15:
                send_and_wait(peer, controls, "/control/mute" if tick % 2 else "/control/resume", [])
            told += [(notice.time_s, notice.text) for notice in state.apply(tick / 10)]
    sender = f"control received from {LOOPBACK}"
    assert told == [
        (0.5, f"{sender}: mute"),
        (1.5, f"{sender}: resume (changes before it: 8)"),
    ]
    assert (state.applied, state.muted, state.ignored) == (40, False, 0)


def test_a_button_acts_when_it_is_pressed_and_not_when_it_is_released() -> None:
    pressed, released = (format_message(b"/control/mute", [value])[0] for value in (1.0, 0.0))
    assert parse_controls(pressed) == ([Control("mute")], 0)
    assert parse_controls(released) == ([], 0)
    both = format_bundle([(b"/control/resume", [True]), (b"/control/ignore_audio", [4])])[0]
    assert parse_controls(both) == ([Control("resume"), Control("ignore_audio", 4.0)], 0)


@pytest.mark.parametrize(
    ("tag", "argument", "seconds"),
    [
        ("i", struct.pack(">i", 3), 3.0),
        ("h", struct.pack(">q", 3), 3.0),
        ("f", struct.pack(">f", 2.5), 2.5),
        ("d", struct.pack(">d", 0.1), 0.1),
        ("T", b"", 1.0),
        ("F", b"", 0.0),
        ("s", b"2.5\0", 2.5),
        ("S", b" 4 \0", 4.0),
        ("c", b"\0\0\0" + b"7", 7.0),
    ],
)
def test_every_type_that_holds_a_number_is_one(tag: str, argument: bytes, seconds: float) -> None:
    tags = f",{tag}".encode() + b"\0\0"
    ignore = b"/control/ignore_audio\0\0\0" + tags + argument
    assert parse_controls(ignore) == ([Control("ignore_audio", seconds)], 0)
    mute = b"/control/mute\0\0\0" + tags + argument
    assert parse_controls(mute) == ([Control("mute")] if seconds else [], 0)


@pytest.mark.parametrize("tag", ["I", "N"])
def test_a_bang_and_nil_are_no_argument(tag: str) -> None:
    tags = f",{tag}".encode() + b"\0\0"
    assert parse_controls(b"/control/resume\0" + tags) == ([Control("resume")], 0)
    assert parse_controls(b"/control/ignore_audio\0\0\0" + tags) == ([], 1)


@pytest.mark.parametrize("value", [7, 2**40, 1.5, True, "3", "2.5"])
def test_python_osc_is_understood_with_every_type_that_it_sends(value: object) -> None:
    builder = OscMessageBuilder(f"{PREFIX}/control/ignore_audio")
    builder.add_arg(value)
    controls, ignored = parse_controls(builder.build().dgram)
    if float(value) <= MAX_IGNORE_S:
        assert (controls, ignored) == ([Control("ignore_audio", float(value))], 0)
    else:
        assert (controls, ignored) == ([], 1)


@pytest.mark.parametrize("later_s", [None, 0.0, 3600.0])
def test_each_message_of_a_bundle_stands_for_itself_and_a_bundle_may_hold_bundles(
    later_s: float | None,
) -> None:
    def built(*contents: OscMessage | OscBundle) -> OscBundle:
        builder = OscBundleBuilder(IMMEDIATELY if later_s is None else time.time() + later_s)
        for content in contents:
            builder.add_content(content)
        return builder.build()

    def message(address: str, *values: float | str) -> OscMessage:
        builder = OscMessageBuilder(address)
        for value in values:
            builder.add_arg(value)
        return builder.build()

    inner = built(message("/light/1", 0.5), message("/control/ignore_audio", 2.0))
    outer = built(
        message("/control/mute"),
        message("/control/ignore_audio", "soon"),
        built(),
        built(inner, message("/control/resume", 1)),
        message("/control/mute", 1.0, 2.0),
        message("/control/ignore_audio", 3),
    )
    controls = [
        Control("mute"),
        Control("ignore_audio", 2.0),
        Control("resume"),
        Control("ignore_audio", 3.0),
    ]
    assert parse_controls(outer.dgram) == (controls, 3)


def test_a_damaged_bundle_gives_what_stands_before_the_damage() -> None:
    whole = format_bundle([(b"/control/mute", []), (b"/control/resume", [])])[0]
    assert parse_controls(whole[:-4]) == ([Control("mute")], 1)
    assert parse_controls(whole + b"\0\0\0\0") == ([Control("mute"), Control("resume")], 1)


def test_a_bundle_as_deep_as_a_packet_allows_is_read(peer: Peer) -> None:
    packet = format_message(b"/control/mute", [])[0]
    while len(packet) < 65_000:
        packet = b"#bundle\0" + bytes(7) + b"\1" + len(packet).to_bytes(4, "big") + packet
    with contextlib.closing(Controls(LOOPBACK, 0)) as controls:
        peer.send_raw(controls.port, packet)
        until(lambda: controls.packets == 1)
        assert (controls.take(), controls.ignored) == ([Control("mute")], 0)


def test_names_that_are_no_text_are_sent(peer: Peer) -> None:
    with contextlib.closing(OscSink(LOOPBACK, peer.port)) as sink:
        sink.publish(Notice(1.0, os.fsdecode(b"cannot read latin\xe9.mp4")))
    assert peer.bundle() == {f"{PREFIX}/status/notice": rb"cannot read latin\xe9.mp4"}


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_a_receiver_is_reached_by_its_name_and_by_ipv6(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((host if ":" in host else LOOPBACK, 0))
        receiver.settimeout(PATIENCE_S)
        target = parse_sink(f"osc:{f'[{host}]' if ':' in host else host}:{receiver.getsockname()[1]}")
        with contextlib.closing(OscSink(target.host, target.port)) as sink:
            sink.publish(reading(1.0))
        assert receiver.recv(65_536).startswith(b"#bundle\0")


def test_controls_that_come_too_fast_are_dropped_and_counted(peer: Peer) -> None:
    with contextlib.closing(Controls(LOOPBACK, 0)) as controls:
        for k in range(100):
            send_and_wait(peer, controls, "/control/ignore_audio", [float(k)])
        taken = controls.take()
    assert [control.seconds for control in taken] == list(range(100 - len(taken), 100))
    assert controls.ignored == 100 - len(taken) > 0


def test_errors_of_a_dead_receiver_are_counted_and_a_new_one_in_its_place_gets_messages() -> None:
    with contextlib.closing(Peer()) as first, contextlib.closing(OscSink(LOOPBACK, first.port)) as sink:
        sink.publish(Start("tiny", "0" * 64, "clip.mkv", "real", ("CPU",), {}, "1"))
        assert first.bundle()[f"{PREFIX}/status/bundle"] == b"tiny"
        first.close()
        for k in range(20):
            sink.publish(reading(k / 10))
        assert sink.send_errors >= 10
        with contextlib.closing(Peer(first.port)) as second:
            sink.publish(reading(7.0))
            assert second.bundle()[f"{PREFIX}/time_s"] == 7.0


def free_port() -> int:
    with contextlib.closing(Peer()) as probe:
        return probe.port


def test_controls_mute_resume_and_ignore_sound_in_a_run_at_real_pace(
    small_bundle: Path, tmp_path: Path, peer: Peer
) -> None:
    sound, port = write_wav(tmp_path / "tone.wav", tone(120.0), 16_000), free_port()
    command = [sys.executable, "-m", "vaemotion", "run", str(small_bundle), str(sound)]
    command += ["--osc-in", str(port), "--out", f"osc:{LOOPBACK}:{peer.port}"]
    command += ["--narrate-every", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def receive(address: str, *values: object) -> Bundle:
        while (got := peer.bundle()).get(PREFIX + address) not in values:
            pass
        return got

    try:
        assert float(receive("/path", b"audio")[f"{PREFIX}/latency_ms"]) >= 0
        peer.send(port, "/control/mute", [])
        receive("/status/muted", 1)
        after = [peer.bundle() for _ in range(3)]
        assert times(after) == []
        peer.send(port, "/control/resume", [])
        receive("/status/muted", 0)
        receive("/path", b"audio")
        peer.send(port, "/control/ignore_audio", [60.0])
        status = receive("/status/controls", 3)
        assert 0 < float(status[f"{PREFIX}/status/ignoring_audio_s"]) <= 60
        while times([peer.bundle(), second := peer.bundle()]) or f"{PREFIX}/heartbeat" not in second:
            pass  # there was only sound: the readings end, and the heartbeat goes on
        process.send_signal(signal.SIGTERM)
        end = peer.until_the_end()[-1]
        assert end[f"{PREFIX}/status/reason"] == b"interrupted"
        _, error = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 128 + signal.SIGTERM, error
        assert "Traceback" not in error
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ["--out", "osc:127.0.0.1"],
            "--out osc: takes HOST:PORT with a port from 1 to 65535, got '127.0.0.1'",
        ),
        (["--out", "osc:127.0.0.1:70000"], "--out osc: takes HOST:PORT"),
        (["--out", f"osc:{'x' * 70}:9000"], "cannot be found; give its IP address"),
        (["--osc-in", "seven"], "--osc-in takes PORT or HOST:PORT with a port from 1 to 65535, got 'seven'"),
        (["--osc-in", "0.0.0.0:9001"], "is on a network: name the addresses"),
        (["--osc-in", "0"], "--osc-in takes PORT or HOST:PORT"),
        (["--osc-in", "{taken}"], "choose another port"),
    ],
)
def test_an_error_is_one_sentence(
    small_bundle: Path,
    tmp_path: Path,
    peer: Peer,
    change: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_wav(tmp_path / "tone.wav", tone(0.5), 16_000)
    words = [word.format(taken=peer.port) for word in change]
    assert main(["run", str(small_bundle), str(file), "--pace", "max", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
