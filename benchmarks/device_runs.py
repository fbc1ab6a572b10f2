"""Timed runs of the runtime, and measurements of a device process from outside.

In: a bundle, opened before the timing starts, and a clip. Timed runs have processes of their own. Out: the
cost of a run, and a timeline as the runtime writes it. This module imports no torch, as on a device.
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
from av.video.reformatter import VideoReformatter

from benchmarks import timing
from runtime.clock import ManualClock, MonotonicClock
from runtime.commands.timeline.read import read_timeline
from runtime.file_session import FilePresenter
from runtime.machine.stop import Stop
from runtime.machine.threads import thread_budget
from runtime.messages import Message, Reading, Start
from runtime.perception.perception import Perception
from runtime.perception.predictor import DevicePredictor, Predictor, open_predictor
from runtime.perception.ticks import BATCH_TICKS, IntakeOptions
from runtime.run import build_session
from runtime.show.controls import ControlState
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.osc import OscSink
from runtime.sinks.outbox import Outbox, Sink
from runtime.sinks.publisher import Publisher
from runtime.sources.file import FileFeed, FileSource
from vaemotion.contract.media.picture import to_picture
from vaemotion.contract.windows import WindowConfig

REPETITIONS = 5


@dataclass(frozen=True)
class RunCost:
    """The cost of ``media_s`` seconds of media.

    ``stages``: as ``StageTimes.summary`` gives them. ``dropped``: number of dropped ticks and messages.
    """

    media_s: float
    wall_s: float
    cpu_s: float
    stages: Mapping[str, Mapping[str, float]]
    dropped: int = 0


# --- runs in processes of their own -----------------------------------------------------------------------

_open = contextlib.ExitStack()  # bundles stay open until the process ends


@functools.cache
def open_bundle(bundle: Path, threads: int) -> DevicePredictor:
    """Open a bundle, once per process."""
    return _open.enter_context(open_predictor(bundle, threads=thread_budget(threads)))


def start_of(path: Path, pace: str = "max") -> Start:
    """Make the start message of a run."""
    return Start("", "", path.name, pace, (), {}, "")


def stream(
    predictor: DevicePredictor,
    path: Path,
    pace: str,
    sinks: Mapping[str, Sink],
    schedule: WindowConfig | None = None,
    batch_ticks: int | None = None,
) -> None:
    """Run a file through the whole runtime, without a narrator.

    ``schedule``: the windows that set the ticks; None: the bundle's. ``batch_ticks``: number of ticks that
    are encoded in one batch; None: as in ``vaemotion run``.
    """
    source, stop = FileSource(path), Stop()
    clock = ManualClock() if pace == "max" else MonotonicClock()
    boxes = [
        Outbox(name, sink, "wait" if pace == "max" else "drop-oldest", stop) for name, sink in sinks.items()
    ]
    with contextlib.closing(FileFeed(source, clock)) as feed:
        batch_ticks = batch_ticks or (BATCH_TICKS if clock.simulated else 1)
        options = IntakeOptions(source.has_frames, source.has_sound, schedule, batch_ticks)
        presenter = FilePresenter(0.0, ControlState(), clock)
        build_session(Perception(predictor), feed, clock, stop, presenter, Publisher(boxes), options).run(
            start_of(path, pace)
        )


def timed_run(predictor: Predictor, path: Path, timeline: Path, batch_ticks: int = BATCH_TICKS) -> RunCost:
    """Run a file at full pace into a timeline; ``batch_ticks``: number of ticks in one batch."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    stream(predictor, path, "max", {"jsonl": JsonLines(str(timeline))}, batch_ticks=batch_ticks)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    end = read_timeline(timeline).end
    assert end is not None
    return RunCost(end.time_s, wall_s, cpu_s, end.stages_ms)


def run_at_max_pace(bundle: Path, path: Path, timeline: Path, threads: int) -> RunCost:
    """Run a file at full pace on a bundle's engines, into a timeline."""
    return timed_run(open_bundle(bundle, threads), path, timeline)


def run_at_real_pace(bundle: Path, path: Path, timeline: Path) -> RunCost:
    """Run a file at real pace into JSON lines and OSC.

    The engines have one thread each, so they compute in the loop's thread.
    """
    predictor = open_bundle(bundle, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        sinks = {"jsonl": JsonLines(str(timeline)), "osc": OscSink(*receiver.getsockname())}
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        stream(predictor, path, "real", sinks)
        wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    end = read_timeline(timeline).end
    assert end is not None
    return RunCost(end.time_s, wall_s, cpu_s, end.stages_ms, sum(end.dropped.values()))


def decode_video(path: Path, hop_s: float) -> RunCost:
    """Decode a video only, and convert to RGB only the newest frame of each grid point."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    newest, time_s, due_s = None, 0.0, 0.0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            time_s = frame.time or 0.0
            if newest is not None and time_s > due_s + 1e-6:
                to_picture(newest, VideoReformatter())
                due_s += hop_s
            newest = frame
    return RunCost(time_s, time.perf_counter() - began_s, time.process_time() - began_cpu_s, {})


class CpuTimeSink:
    """A sink that keeps the process's CPU time at each reading."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []

    def publish(self, message: Message) -> None:
        """Keep the CPU time at a reading, ignore other messages."""
        if isinstance(message, Reading):
            self.cpu_s.append(time.process_time())

    def close(self) -> None:
        """Nothing to close."""


def cpu_s_at_readings(bundle: Path, path: Path, timeline: Path, threads: int) -> list[float]:
    """Run a file at full pace and return the process's CPU time at each reading."""
    sink = CpuTimeSink()
    stream(open_bundle(bundle, threads), path, "max", {"cpu time": sink, "jsonl": JsonLines(str(timeline))})
    return sink.cpu_s


# --- interleaved processes --------------------------------------------------------------------------------


def own_process() -> ProcessPoolExecutor:
    """Return a pool of one new process that has imported nothing of this project yet."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def interleaved_processes(runs: Mapping[str, Callable[[], RunCost]]) -> dict[str, list[RunCost]]:
    """Repeat every run ``REPETITIONS`` times, interleaved, each in its own process, without the warm-up."""
    with contextlib.ExitStack() as pools:

        def in_its_process(run: Callable[[], RunCost]) -> Callable[[], RunCost]:
            pool = pools.enter_context(own_process())
            return lambda: pool.submit(run).result()

        calls = {name: in_its_process(run) for name, run in runs.items()}
        return timing.interleaved_results(calls, REPETITIONS)


# --- the device process, from outside ---------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceRun:
    """A whole run as a user starts it.

    ``first_reading_s``: seconds from its start to its first reading. ``cpu_share``: CPU time over wall time
    from its first reading to its end. ``peak_mb``: peak resident memory.
    """

    first_reading_s: float
    cpu_share: float
    peak_mb: float


@contextlib.contextmanager
def running_device(bundle: Path, path: Path, timeline: Path) -> Generator[tuple[psutil.Popen, float]]:
    """Start ``vaemotion run`` as a user does; yield it at its first reading, with the seconds until then.

    A process that still runs at the end of the context is interrupted.
    """
    timeline.unlink(missing_ok=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        outs = ["--out", f"jsonl:{timeline}", "--out", "osc:{}:{}".format(*receiver.getsockname())]
        began_s = time.monotonic()
        process = psutil.Popen(
            [sys.executable, "-m", "vaemotion", "run", str(bundle), str(path), "--pace", "real", *outs]
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
    """Measure the CPU time of ``vaemotion --help``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vaemotion", "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def time_to_first_reading_s(bundle: Path, path: Path, timeline: Path) -> float:
    """Measure the seconds from the start of a run to its first reading; the run is then interrupted."""
    with running_device(bundle, path, timeline) as (_, first_reading_s):
        return first_reading_s


def measure_device(bundle: Path, path: Path, timeline: Path) -> DeviceRun:
    """Measure a run until the file's end."""
    with running_device(bundle, path, timeline) as (process, first_reading_s):
        began_s, began_cpu_s = time.monotonic(), _cpu_s(process)
        share, peak_mb = 0.0, 0.0
        while process.poll() is None:
            share = (_cpu_s(process) - began_cpu_s) / max(1e-9, time.monotonic() - began_s)
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            if peak:  # absent once the process has ended
                peak_mb = int(peak[1]) * 1024 / 1e6
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), "torch was loaded"
            time.sleep(0.2)
    return DeviceRun(first_reading_s, share, peak_mb)


def _cpu_s(process: psutil.Popen) -> float:
    times = process.cpu_times()
    return times.user + times.system
