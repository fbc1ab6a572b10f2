"""Response time, latency and recovery of the live path.

    python -m benchmarks.live step BUNDLE                   # response to a cut from calm to intense
    python -m benchmarks.live latency BUNDLE --seconds 120  # from a frame's arrival to its OSC packet
    python -m benchmarks.live recovery BUNDLE               # from a device's return to a reading with it

``step`` uses simulated devices and a simulated clock; the others use an MJPEG camera and a sound server on
loopback.

The exit code is 1 if a limit is exceeded. ``step``: the published arousal, smoothed, takes more than
``HALF_S`` to cross half of its final change. ``latency``: the 99th percentile is above ``P99_MS``.
``recovery``: a camera takes more than ``CAMERA_BACK_S``, or a microphone more than ``MICROPHONE_BACK_S``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pythonosc.osc_bundle import OscBundle
from pythonosc.osc_message import OscMessage

from runtime.clock import ManualClock, MonotonicClock
from runtime.commands.soak.devices import SimulatedCamera, SimulatedMicrophone
from runtime.commands.soak.film import FRAMES_PER_S, Recording
from runtime.config import LiveConfig
from runtime.live_session import LiveSession
from runtime.machine.stop import Stop
from runtime.machine.threads import thread_budget
from runtime.messages import Message, Reading, Start
from runtime.perception.perception import Perception
from runtime.perception.predictor import DevicePredictor, open_predictor
from runtime.run import build_live_feed, build_session
from runtime.show.controls import ControlState
from runtime.sinks.osc import PREFIX, OscSink
from runtime.sinks.outbox import Outbox
from runtime.sinks.publisher import Publisher
from runtime.sources.config import CameraConfig
from runtime.sources.feed import Arrived
from runtime.sources.supervision import LiveFeed
from tests.live_peers import free_port, mjpeg_server, sound_server, tone, until
from vaemotion.contract.address import Address
from vaemotion.data.art.art import Work, draw_frame, sample_work, synthesize, work_seed

HALF_S = 2.0
P99_MS = 100.0
CAMERA_BACK_S, MICROPHONE_BACK_S = 3.0, 6.0
RETURNS = 5
SCENE_S = 12.0  # length of each scene, before the cut and after it
PAIRS = 8
START = Start("", "", "", "real", (), {}, "")


class ReadingSink:
    """A sink that keeps the readings."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def publish(self, message: Message) -> None:
        """Keep a reading, ignore other messages."""
        if isinstance(message, Reading):
            self.readings.append(message)

    def close(self) -> None:
        """Nothing to close."""


class TimedFeed:
    """A feed that stops the run at ``end_s``."""

    def __init__(self, feed: LiveFeed, end_s: float) -> None:
        self._feed, self._end_s = feed, end_s
        self.dropped: dict[str, int] = {}
        self.times = feed.times

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        """Return what arrived until ``time_s``; stop the run at its end."""
        if time_s >= self._end_s:
            stop.set()
        return self._feed.until(time_s, stop)

    def close(self) -> None:
        """Close the feed."""
        self._feed.close()


def recorded(calm: Work, intense: Work) -> Recording:
    """Render two works one after the other as frames and sound of simulated devices."""
    times_s = np.arange(round(SCENE_S * FRAMES_PER_S)) / FRAMES_PER_S
    frames = [draw_frame(work, float(time_s)) for work in (calm, intense) for time_s in times_s]
    sound = [synthesize(work, SCENE_S) for work in (calm, intense)]
    return Recording(np.stack(frames), np.concatenate(sound))


def half_way_s(predictor: DevicePredictor, recording: Recording) -> tuple[float, float]:
    """Return the response time to a cut in s, and the final change of the published arousal.

    The response time is the time after which arousal stays beyond half of its final change.
    """
    clock, stop, kept = ManualClock(), Stop(), ReadingSink()
    devices = {
        "camera": SimulatedCamera(recording, (), 0),
        "microphone": SimulatedMicrophone(recording, (), 0),
    }
    feed = LiveFeed(devices, clock)  # type: ignore[arg-type]
    config, hop_s = LiveConfig(), predictor.constants.front_end.windows.frame_hop_s
    silent = replace(config, narrator=replace(config.narrator, every_s=0))
    presenter = LiveSession(silent, feed, clock, hop_s, ControlState(), stop)
    publisher = Publisher([Outbox("kept", kept, "wait", stop)])
    ending = TimedFeed(feed, 2 * SCENE_S - 0.2)
    build_session(Perception(predictor), ending, clock, stop, presenter, publisher).run(START)
    times = np.array([r.time_s for r in kept.readings])
    arousal = np.array([r.arousal for r in kept.readings])
    before = arousal[(times > SCENE_S - 4) & (times < SCENE_S)].mean()
    after = arousal[times > 2 * SCENE_S - 5].mean()
    share = (arousal - before) / (after - before)
    late = times[(times >= SCENE_S) & (share < 0.5)]
    return float(late.max(initial=SCENE_S) - SCENE_S), float(after - before)


def step(bundle: Path) -> int:
    """Measure cuts from the calmest to the most intense of the test split's first 200 works."""
    works = sorted(
        (sample_work(work_seed("test", index)) for index in range(200)), key=lambda work: work.arousal
    )
    slowest_s = 0.0
    with open_predictor(bundle) as predictor:
        for calm, intense in zip(works[:PAIRS], works[-PAIRS:], strict=True):
            half_s, change = half_way_s(predictor, recorded(calm, intense))
            slowest_s = max(slowest_s, half_s)
            cut = f"{calm.content} ({calm.arousal:+.2f}) to {intense.content} ({intense.arousal:+.2f})"
            print(f"{cut}: half of {change:+.2f} after {half_s:.1f} s", flush=True)
    print(f"slowest {slowest_s:.1f} s, allowed {HALF_S:g} s")
    return int(slowest_s > HALF_S)


def camera(port: int) -> None:
    """Serve an MJPEG camera; called in a process of its own, so that its work is not measured."""
    with mjpeg_server(port):
        time.sleep(3600)


def on_loopback(
    predictor: DevicePredictor, port: int, clock: MonotonicClock, stop: Stop
) -> tuple[LiveFeed, LiveSession]:
    """Open the camera at ``port`` and the sound server's microphone for a live run."""
    config = LiveConfig(camera=CameraConfig(device=Address(f"http://127.0.0.1:{port}/camera")))
    feed = build_live_feed(config, clock)
    hop_s = predictor.constants.front_end.windows.frame_hop_s
    return feed, LiveSession(config, feed, clock, hop_s, ControlState(), stop)


def latency(bundle: Path, seconds: float) -> int:
    """Measure the time from a frame's arrival to its OSC packet.

    The receiver runs in this process and stamps packets with the run's own clock.
    """
    port, clock, stop = free_port(), MonotonicClock(), Stop()
    server = multiprocessing.Process(target=camera, args=(port,), daemon=True)
    server.start()
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(0.2)
    arrivals_ms: list[float] = []

    def receive() -> None:
        while not stop.is_set():
            try:
                packet = receiver.recv(4096)
            except TimeoutError:
                continue
            now_s, values = clock.now_s(), dict(messages(packet))
            if values.get(f"{PREFIX}/age/visual_s", -1.0) >= 0:
                arrivals_ms.append(
                    (now_s - values[f"{PREFIX}/time_s"] + values[f"{PREFIX}/age/visual_s"]) * 1000
                )

    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        sound_server(Path(folder), patch) as room,
        room.playing(tone(440, 0.2, seconds + 30)),
        open_predictor(bundle, threads=thread_budget(side_by_side=True)) as predictor,
    ):
        feed, presenter = on_loopback(predictor, port, clock, stop)
        kept = ReadingSink()
        boxes = [
            Outbox("osc:here", OscSink(*receiver.getsockname()), "drop-oldest", stop),
            Outbox("kept", kept, "drop-oldest", stop),
        ]
        listener = threading.Thread(target=receive, daemon=True)
        listener.start()
        ending = TimedFeed(feed, seconds)
        build_session(Perception(predictor), ending, clock, stop, presenter, Publisher(boxes)).run(START)
        feed.close()
        without_ms, with_ms = presenter.governor.latency_p99_ms()[::-1]
    server.kill()
    p50_ms, p99_ms = (float(np.percentile(arrivals_ms, share)) for share in (50, 99))
    paths = {path: sum(r.path == path for r in kept.readings) for path in ("audio", "visual", "audio-visual")}
    counts = ", ".join(f"{count} {path}" for path, count in paths.items())
    load = os.getloadavg()[0]
    print(f"{seconds:.0f} s at load {load:.1f}: {len(arrivals_ms)} readings with a frame; by path {counts}")
    print(f"frame to OSC packet: p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms, allowed {P99_MS:g} ms")
    without, during = (float("nan") if ms is None else ms for ms in (without_ms, with_ms))
    print(f"tick to reading, p99: {without:.0f} ms; while a narration is generated {during:.0f} ms")
    return int(p99_ms > P99_MS)


def recovery(bundle: Path) -> int:
    """Remove both devices and bring them back, ``RETURNS`` times each."""
    port, clock, stop, kept = free_port(), MonotonicClock(), Stop(), ReadingSink()
    waited_s: dict[str, list[float]] = {"visual": [], "audio": []}

    def newest_has(modality: str) -> bool:
        return (
            bool(kept.readings)
            and clock.now_s() - kept.readings[-1].time_s < 0.5
            and modality in kept.readings[-1].path
        )

    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        sound_server(Path(folder), patch, running=False) as room,
        open_predictor(bundle, threads=thread_budget(side_by_side=True)) as predictor,
    ):
        feed, presenter = on_loopback(predictor, port, clock, stop)
        box = Outbox("kept", kept, "drop-oldest", stop)
        session = build_session(Perception(predictor), feed, clock, stop, presenter, Publisher([box]))
        running = threading.Thread(target=session.run, args=(START,), daemon=True)
        running.start()
        for _ in range(RETURNS):
            room.start()
            came_s = clock.now_s()
            until(lambda: newest_has("audio"), "sound in a reading again")
            waited_s["audio"].append(clock.now_s() - came_s)
            came_s = clock.now_s()
            with mjpeg_server(port):
                until(lambda: newest_has("visual"), "frames in a reading again")
                waited_s["visual"].append(clock.now_s() - came_s)
            room.kill()
            until(lambda: not newest_has("visual") and not newest_has("audio"), "no device left")
        stop.set()
        running.join()
        feed.close()
    for modality, limit_s in (("visual", CAMERA_BACK_S), ("audio", MICROPHONE_BACK_S)):
        times = ", ".join(f"{s:.1f}" for s in waited_s[modality])
        print(f"{modality}: in a reading again after {times} s, allowed {limit_s:g} s")
    return int(max(waited_s["visual"]) > CAMERA_BACK_S or max(waited_s["audio"]) > MICROPHONE_BACK_S)


def messages(packet: bytes) -> list[tuple[str, float]]:
    """Return the numeric messages of an OSC bundle as (address, value)."""
    found = OscBundle(packet)
    return [
        (m.address, float(m.params[0]))
        for m in found
        if isinstance(m, OscMessage) and not isinstance(m.params[0], str)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["step", "latency", "recovery"], help="what to measure")
    parser.add_argument("bundle", type=Path, help="bundle to run")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the latency run")
    options = parser.parse_args()
    if options.what == "latency":
        return latency(options.bundle, options.seconds)
    return step(options.bundle) if options.what == "step" else recovery(options.bundle)


if __name__ == "__main__":
    raise SystemExit(main())
