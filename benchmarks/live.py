"""The live path, measured: how fast the published arousal follows a cut, and how long a picture takes to the show.

    python -m benchmarks.live step BUNDLE               # simulated devices, simulated clock: from a calm scene to a stormy one
    python -m benchmarks.live latency BUNDLE --seconds 120   # a real MJPEG camera and a real sound server on loopback, OSC back to us
    python -m benchmarks.live recovery BUNDLE           # from a device's return to the first reading that rests on it

``step`` ends with 1 where the published arousal (smoothing included) needs more than ``HALF_S`` to cross half of its final change, ``latency`` where the
99th percentile from a picture's arrival to its OSC packet's is above ``P99_MS``, ``recovery`` where a camera needs more than ``CAMERA_BACK_S`` or a
microphone more than ``MICROPHONE_BACK_S``.
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
from runtime.config import CameraConfig, LiveConfig
from runtime.installation import Installation
from runtime.live import LiveFeed
from runtime.messages import Message, Reading, Start
from runtime.predictor import DevicePredictor, open_predictor
from runtime.run import live_feed
from runtime.session import Session
from runtime.simulated import SimulatedCamera, SimulatedMicrophone
from runtime.sinks.osc import PREFIX, OscSink
from runtime.sinks.outbox import Outbox
from runtime.soak_media import PICTURES_HZ, Recording
from runtime.sources import Arrived
from runtime.stop import Stop
from runtime.threads import thread_budget
from tests.live_peers import free_port, mjpeg_server, sound_server, tone, until
from vaemotion.data.procedural_art import Work, draw_frame, sample_work, synthesise, work_seed

HALF_S = 2.0
P99_MS = 100.0
CAMERA_BACK_S, MICROPHONE_BACK_S = 3.0, 6.0
RETURNS = 5
SCENE_S = 12.0  # before the cut, and after it
PAIRS = 8
START = Start("", "", "", "real", (), {}, "")


class Kept:
    """A sink that keeps the readings."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def publish(self, message: Message) -> None:
        if isinstance(message, Reading):
            self.readings.append(message)

    def close(self) -> None:
        """Nothing to close."""


class Ending:
    """A feed that ends the run at ``end_s``."""

    def __init__(self, feed: LiveFeed, end_s: float) -> None:
        self._feed, self._end_s = feed, end_s
        self.dropped: dict[str, int] = {}
        self.times = feed.times

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        if time_s >= self._end_s:
            stop.set()
        return self._feed.until(time_s, stop)

    def close(self) -> None:
        self._feed.close()


def recorded(calm: Work, stormy: Work) -> Recording:
    """Both works one after the other, as a camera and a microphone would have them."""
    times_s = np.arange(round(SCENE_S * PICTURES_HZ)) / PICTURES_HZ
    pictures = [draw_frame(work, float(time_s)) for work in (calm, stormy) for time_s in times_s]
    return Recording(
        np.stack(pictures), np.concatenate([synthesise(work, SCENE_S) for work in (calm, stormy)])
    )


def half_way_s(predictor: DevicePredictor, recording: Recording) -> tuple[float, float]:
    """Seconds after the cut until the published arousal has crossed half of its final change for good; and that change."""
    clock, stop, kept = ManualClock(), Stop(), Kept()
    devices = {
        "camera": SimulatedCamera(recording, (), 0),
        "microphone": SimulatedMicrophone(recording, (), 0),
    }
    feed = LiveFeed(devices, clock)  # type: ignore[arg-type]
    config, hop_s = LiveConfig(), predictor.constants.front_end.windows.frame_hop_s
    installation = Installation(
        replace(config, narrator=replace(config.narrator, every_s=0)), feed, clock, hop_s
    )
    box = Outbox("kept", kept, "wait", stop)
    Session(
        predictor, Ending(feed, 2 * SCENE_S - 0.2), clock, [box], stop, "max", 0.0, installation=installation
    ).run(START)
    times = np.array([r.time_s for r in kept.readings])
    arousal = np.array([r.arousal for r in kept.readings])
    before = arousal[(times > SCENE_S - 4) & (times < SCENE_S)].mean()
    after = arousal[times > 2 * SCENE_S - 5].mean()
    share = (arousal - before) / (after - before)
    late = times[(times >= SCENE_S) & (share < 0.5)]
    return float(late.max(initial=SCENE_S) - SCENE_S), float(after - before)


def step(bundle: Path) -> int:
    """The calmest and the most stirring of the first 200 works of the test split, in pairs."""
    works = sorted(
        (sample_work(work_seed("test", index)) for index in range(200)), key=lambda work: work.arousal
    )
    slowest_s = 0.0
    with open_predictor(bundle) as predictor:
        for calm, stormy in zip(works[:PAIRS], works[-PAIRS:], strict=True):
            half_s, change = half_way_s(predictor, recorded(calm, stormy))
            slowest_s = max(slowest_s, half_s)
            print(f"{calm.content} ({calm.arousal:+.2f}) to {stormy.content} ({stormy.arousal:+.2f}): "
                  f"half of {change:+.2f} after {half_s:.1f} s", flush=True)  # fmt: skip
    print(f"slowest {slowest_s:.1f} s, allowed {HALF_S:g} s")
    return int(slowest_s > HALF_S)


def camera(port: int) -> None:
    """In a process of its own, so that making pictures is not counted."""
    with mjpeg_server(port):
        time.sleep(3600)


def on_loopback(
    predictor: DevicePredictor, port: int, clock: MonotonicClock
) -> tuple[LiveFeed, Installation]:
    """A live run with the camera of ``port`` and the sound server's microphone."""
    config = LiveConfig(camera=CameraConfig(device=f"http://127.0.0.1:{port}/camera"))
    feed = live_feed(config, clock)
    return feed, Installation(config, feed, clock, predictor.constants.front_end.windows.frame_hop_s)


def latency(bundle: Path, seconds: float) -> int:
    """The run's clock stamps the packets, too, because everything but the devices is in this process."""
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
        feed, installation = on_loopback(predictor, port, clock)
        kept = Kept()
        boxes = [
            Outbox("osc:here", OscSink(*receiver.getsockname()), "drop-oldest", stop),
            Outbox("kept", kept, "drop-oldest", stop),
        ]
        listener = threading.Thread(target=receive, daemon=True)
        listener.start()
        ending = Ending(feed, seconds)
        Session(predictor, ending, clock, boxes, stop, "real", 2.0, installation=installation).run(START)
        feed.close()
        without_ms, with_ms = installation.governor.latency_p99_ms()[::-1]
    server.kill()
    p50_ms, p99_ms = (float(np.percentile(arrivals_ms, share)) for share in (50, 99))
    paths = {path: sum(r.path == path for r in kept.readings) for path in ("audio", "visual", "audio-visual")}
    print(
        f"{seconds:.0f} s at load {os.getloadavg()[0]:.1f}: {len(arrivals_ms)} readings with a picture, paths {paths}"
    )
    print(
        f"a picture's arrival to its OSC packet: p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms, allowed {P99_MS:g} ms"
    )
    print(
        f"a moment to its reading, p99: {without_ms or float('nan'):.0f} ms, while a narration is made {with_ms or float('nan'):.0f} ms"
    )
    return int(p99_ms > P99_MS)


def recovery(bundle: Path) -> int:
    """Both devices are taken away and brought back, ``RETURNS`` times each."""
    port, clock, stop, kept = free_port(), MonotonicClock(), Stop(), Kept()
    found_s: dict[str, list[float]] = {"visual": [], "audio": []}

    def rests_on(modality: str) -> bool:
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
        feed, installation = on_loopback(predictor, port, clock)
        box = Outbox("kept", kept, "drop-oldest", stop)
        session = Session(predictor, feed, clock, [box], stop, "real", 2.0, installation=installation)
        running = threading.Thread(target=session.run, args=(START,), daemon=True)
        running.start()
        for _ in range(RETURNS):
            room.start()
            came_s = clock.now_s()
            until(lambda: rests_on("audio"), "heard again")
            found_s["audio"].append(clock.now_s() - came_s)
            came_s = clock.now_s()
            with mjpeg_server(port):
                until(lambda: rests_on("visual"), "seen again")
                found_s["visual"].append(clock.now_s() - came_s)
            room.kill()
            until(lambda: not rests_on("visual") and not rests_on("audio"), "nothing left")
        stop.set()
        running.join()
        feed.close()
    for modality, limit_s in (("visual", CAMERA_BACK_S), ("audio", MICROPHONE_BACK_S)):
        told = ", ".join(f"{s:.1f}" for s in found_s[modality])
        print(f"{modality}: in a reading again after {told} s, allowed {limit_s:g} s")
    return int(max(found_s["visual"]) > CAMERA_BACK_S or max(found_s["audio"]) > MICROPHONE_BACK_S)


def messages(packet: bytes) -> list[tuple[str, float]]:
    """The addresses with numbers of an OSC bundle."""
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
    parser.add_argument("what", choices=["step", "latency", "recovery"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    if options.what == "latency":
        return latency(options.bundle, options.seconds)
    return step(options.bundle) if options.what == "step" else recovery(options.bundle)


if __name__ == "__main__":
    raise SystemExit(main())
