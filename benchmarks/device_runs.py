"""The runtime's runs that are timed: each in a process of its own, opened before the clock starts; and the device process, seen from outside.

In: a bundle and a clip. Out: what was spent on them, and timelines as the runtime writes them. Knows no torch, as the device does not.
"""

from __future__ import annotations

import contextlib
import functools
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import av
import psutil

from benchmarks import timing
from runtime.clock import ManualClock, MonotonicClock
from runtime.messages import Message, Reading, Start
from runtime.moments import AT_ONCE, moments_at_once
from runtime.predictor import DevicePredictor, Predictor, open_predictor
from runtime.session import Session
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.osc import OscSink
from runtime.sinks.outbox import Outbox, Sink
from runtime.sources import FileFeed, FileSource
from runtime.stop import Stop
from runtime.threads import thread_budget
from runtime.timeline import read_timeline
from vaemotion.contract.media import upright
from vaemotion.contract.windows import WindowConfig

REPETITIONS = 5


@dataclass(frozen=True)
class Spent:
    """What a contender needed for ``media_s`` of media; ``stages``: see ``StageTimes.summary``; ``dropped``: moments and messages."""

    media_s: float
    wall_s: float
    cpu_s: float
    stages: Mapping[str, Mapping[str, float]]
    dropped: int = 0


# --- in processes of their own ----------------------------------------------------------------------------------------

_open = contextlib.ExitStack()  # what a process opened stays open until it ends


@functools.cache
def opened(bundle: Path, threads: int) -> DevicePredictor:
    """A bundle, opened once in this process."""
    return _open.enter_context(open_predictor(bundle, threads=thread_budget(threads)))


def start_of(path: Path, pace: str = "max") -> Start:
    return Start("", "", path.name, pace, (), {}, "")


def stream(
    predictor: DevicePredictor, path: Path, pace: str, sinks: Mapping[str, Sink], schedule: WindowConfig | None = None,
    at_once: int | None = None,
) -> None:  # fmt: skip
    """A file through the whole runtime, without a narrator; ``schedule``: see ``Session``; ``at_once`` None: as ``vaemotion run`` does."""
    source, stop = FileSource(path), Stop()
    clock = ManualClock() if pace == "max" else MonotonicClock()
    boxes = [
        Outbox(name, sink, "wait" if pace == "max" else "drop-oldest", stop) for name, sink in sinks.items()
    ]
    with contextlib.closing(FileFeed(source, clock)) as feed:
        Session(
            predictor, feed, clock, boxes, stop, pace, 0.0, has_frames=source.has_frames, has_sound=source.has_sound,
            schedule=schedule, at_once=at_once or moments_at_once(pace),
        ).run(start_of(path, pace))  # fmt: skip


def spent_on(predictor: Predictor, path: Path, timeline: Path, at_once: int = AT_ONCE) -> Spent:
    """A file through the runtime at full pace, into a timeline; ``at_once``: moments in one batch."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    stream(predictor, path, "max", {"jsonl": JsonLines(str(timeline))}, at_once=at_once)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    end = read_timeline(timeline).end
    assert end is not None
    return Spent(end.time_s, wall_s, cpu_s, end.stages_ms)


def ours(bundle: Path, path: Path, timeline: Path, threads: int) -> Spent:
    return spent_on(opened(bundle, threads), path, timeline)


def paced(bundle: Path, path: Path, timeline: Path) -> Spent:
    """At real pace into JSON lines and OSC; engines compute in the loop's thread."""
    predictor = opened(bundle, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        sinks = {"jsonl": JsonLines(str(timeline)), "osc": OscSink(*receiver.getsockname())}
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        stream(predictor, path, "real", sinks)
        wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    end = read_timeline(timeline).end
    assert end is not None
    return Spent(end.time_s, wall_s, cpu_s, end.stages_ms, sum(end.dropped.values()))


def decoded(path: Path, hop_s: float) -> Spent:
    """Only the film, and in RGB only the newest picture of each grid point."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    newest, time_s, due_s = None, 0.0, 0.0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            time_s = frame.time or 0.0
            if newest is not None and time_s > due_s + 1e-6:
                upright(newest)
                due_s += hop_s
            newest = frame
    return Spent(time_s, time.perf_counter() - began_s, time.process_time() - began_cpu_s, {})


class Marks:
    """A sink that notes the process's CPU time at each reading."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []

    def publish(self, message: Message) -> None:
        if isinstance(message, Reading):
            self.cpu_s.append(time.process_time())

    def close(self) -> None:
        """Nothing to close."""


def marks(bundle: Path, path: Path, timeline: Path, threads: int) -> list[float]:
    found = Marks()
    stream(opened(bundle, threads), path, "max", {"marks": found, "jsonl": JsonLines(str(timeline))})
    return found.cpu_s


# --- turns of processes -------------------------------------------------------------------------------------------------


def apart() -> ProcessPoolExecutor:
    """A process of its own, nothing of ours imported yet."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def in_turns(works: Mapping[str, Callable[[], Spent]]) -> dict[str, list[Spent]]:
    """Each in its process, one after the other, ``REPETITIONS`` times; what warms up is left out."""
    with contextlib.ExitStack() as pools:

        def in_its_process(work: Callable[[], Spent]) -> Callable[[], Spent]:
            pool = pools.enter_context(apart())
            return lambda: pool.submit(work).result()

        calls = {name: in_its_process(work) for name, work in works.items()}
        return timing.in_turns(calls, REPETITIONS)


# --- the device process, from outside ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A whole run. ``first_reading_s``: from its start; ``cpu_share``: of one core, from its first reading to its end."""

    first_reading_s: float
    cpu_share: float
    peak_mb: float


@contextlib.contextmanager
def started(bundle: Path, path: Path, timeline: Path) -> Generator[tuple[psutil.Popen, float]]:
    """``vaemotion run`` as a user starts it, at its first reading, and how long that took. It is interrupted if it still runs."""
    timeline.unlink(missing_ok=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        outs = ["--out", f"jsonl:{timeline}", "--out", "osc:{}:{}".format(*receiver.getsockname())]
        began_s = time.monotonic()
        process = psutil.Popen(
            [sys.executable, "-m", "vaemotion.cli", "run", str(bundle), str(path), "--pace", "real", *outs]
        )
        while not (timeline.is_file() and b'"reading"' in timeline.read_bytes()):
            assert process.poll() is None, "the device process ended before its first reading"
            time.sleep(0.005)
        first_reading_s = time.monotonic() - began_s
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), "torch was loaded"
        yield process, first_reading_s
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()


def help_cpu_s() -> float:
    """CPU time of ``vaemotion --help``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vaemotion.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def start(bundle: Path, path: Path, timeline: Path) -> float:
    """Seconds to the first reading of a run that ends with it."""
    with started(bundle, path, timeline) as (_, first_reading_s):
        return first_reading_s


def whole(bundle: Path, path: Path, timeline: Path) -> Device:
    """A run until the file's end."""
    with started(bundle, path, timeline) as (process, first_reading_s):
        began_s, began_cpu_s = time.monotonic(), _cpu_s(process)
        share, peak_mb = 0.0, 0.0
        while process.poll() is None:
            share = (_cpu_s(process) - began_cpu_s) / max(1e-9, time.monotonic() - began_s)
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak_mb = (
                int(peak[1]) * 1024 / 1e6 if peak else peak_mb
            )  # a process that has just ended has no memory
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), "torch was loaded"
            time.sleep(0.2)
    return Device(first_reading_s, share, peak_mb)


def _cpu_s(process: psutil.Popen) -> float:
    times = process.cpu_times()
    return times.user + times.system
