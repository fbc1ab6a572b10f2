"""The whole runtime: against PyTorch with the same model, as a device process, over an hour of media.

In: the suite's working folder. Out: a section. All timed work runs in processes of its own
(``benchmarks.device_runs``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import torch_peers
from benchmarks.device_runs import (
    RunCost,
    cpu_s_at_readings,
    decode_video,
    help_cpu_s,
    interleaved_processes,
    measure_device,
    own_process,
    run_at_max_pace,
    run_at_real_pace,
    time_to_first_reading_s,
)
from benchmarks.figures import Curve, Figure, Section, times_as_fast
from benchmarks.material import clip, tiny_bundle
from benchmarks.timing import Times
from runtime.commands.timeline.read import read_timeline
from runtime.machine.facts import usable_cpus
from runtime.messages import Reading
from runtime.perception.ticks import BATCH_TICKS
from vaemotion.contract.bundle import ENGINE_ROLES, read_manifest

CLOSE = 1e-3  # largest allowed difference between two contenders' readings, in any number
STARTS = 5
WARM_UP_READINGS = 20  # of a run at real pace, its first two seconds
OURS, ANEW = "runtime", "eager, window anew"
CACHED, BATCHED = "eager, our caching", "eager, our caching and batches"
METHOD = """*Against PyTorch*: `vaemotion-tiny` in FP32 over a procedural clip of 480p at 30 frames per second
with sound, ten readings per second. Each contender has {threads} threads and a process of its own that has
opened its model and run twice before. The peers are PyTorch eager under `inference_mode`. *Window anew*
prepares and encodes, at each reading, all frames of the window and its whole log-mel in one batch. *Our
caching* is the runtime, tick by tick, with the checkpoint's modules as engines. The runtime encodes
{batch_ticks} ticks of a file in one batch, because no reading of a file is waited for; the last row compares
with a peer that does the same. All contenders decode with the same code, write the same JSON lines and have
no narrator. Their readings are asserted equal within {close:g} in every number. PyTorch's OpenMP threads spin
while they wait, which is its default and faster on idle cores (see the encoders).

*At real pace* is `vaemotion run BUNDLE CLIP --pace real --out jsonl:… --out osc:…` as a user starts it, with
narrator, measured from outside. That the process has not loaded torch is asserted. *Neither engine nor video
decoding* is a run at real pace into JSON lines and OSC, without narrator: the CPU time of its process, less
that of the engines' stages (one thread each, so they compute in the loop's thread), less that of a process
that only decodes the video at full speed and converts the frames that a run uses to RGB. Decoding and
resampling of the sound are included.

*Cost per reading* is CPU time at full pace over {minutes} minutes of media at 160 × 90 and 10 frames per
second. The media repeat one minute, so that the same content is compared; the first minute warms up."""


def measure(folder: Path, full: bool) -> Section:
    """Measure the section; ``full``: longer clips, and an hour of media."""
    folder = folder.resolve()
    bundle, threads, minutes = tiny_bundle(folder), usable_cpus(), 60 if full else 6
    figures = against_peers(bundle, folder, 30 if full else 10, threads)
    figures += at_real_pace(bundle, folder, 60 if full else 15)
    figures.append(beside_the_engines(bundle, folder, 30 if full else 5))
    constant, curve = over_an_hour(bundle, folder, minutes, threads)
    method = METHOD.format(threads=threads, close=CLOSE, minutes=minutes, batch_ticks=BATCH_TICKS)
    return Section("Whole runtime", method, [*figures, constant], [curve])


# --- against peers ----------------------------------------------------------------------------------------


def against_peers(bundle: Path, folder: Path, seconds: float, threads: int) -> list[Figure]:
    """Measure seconds of media per second, alone and against the peers."""
    path = clip(folder, seconds)
    runs = {
        OURS: run_at_max_pace,
        ANEW: torch_peers.window_anew,
        CACHED: torch_peers.our_caching,
        BATCHED: partial(torch_peers.our_caching, batch_ticks=BATCH_TICKS),
    }
    timelines = {name: folder / f"timeline {name}.jsonl" for name in runs}
    costs = interleaved_processes(
        {name: partial(run, bundle, path, timelines[name], threads) for name, run in runs.items()}
    )
    for peer in (ANEW, CACHED, BATCHED):
        assert_same(timelines[OURS], timelines[peer], seconds)
    times = {name: per_media_second(found) for name, found in costs.items()}
    return [
        figure_of("media seconds per second", [1e3 / ms for ms in times[OURS].wall_ms], "s/s"),
        times_as_fast("a second of media: window anew", times, OURS, ANEW, at_least=5),
        times_as_fast("a second of media: the same caching", times, OURS, CACHED, at_least=1.8),
        times_as_fast("a second of media: the same caching and batches", times, OURS, BATCHED),
    ]


def per_media_second(costs: Sequence[RunCost]) -> Times:
    """Divide the times of runs by the seconds of media."""
    return Times([1e3 * c.wall_s / c.media_s for c in costs], [1e3 * c.cpu_s / c.media_s for c in costs])


def assert_same(ours_file: Path, peers_file: Path, film_s: float) -> None:
    """Assert that two timelines have the same readings at the same ticks.

    After the film's end, which is two ticks, only times and paths are compared: ``window_at`` shows the last
    frame on one grid point more than a stream that knows the film's end.
    """
    mine, theirs = (read_timeline(file).readings for file in (ours_file, peers_file))
    assert [(r.time_s, r.path) for r in mine] == [(r.time_s, r.path) for r in theirs], "other ticks"
    values = [np.array([_numbers(r) for r in readings if r.time_s < film_s]) for readings in (mine, theirs)]
    worst = float(np.abs(values[0] - values[1]).max())
    assert worst < CLOSE, f"the readings of {peers_file.stem} differ by up to {worst:.2g}"
    print(f"{len(mine)} readings, {peers_file.stem}: largest difference {worst:.2g}", flush=True)


def _numbers(reading: Reading) -> list[float]:
    ages_s = [-1.0 if age_s is None else age_s for age_s in (reading.visual_age_s, reading.audio_age_s)]
    intervals = [reading.confidence or 0.0, reading.valence_interval or 0.0, reading.arousal_interval or 0.0]
    affect = [reading.valence, reading.arousal, reading.valence_sd, reading.arousal_sd]
    return [*affect, *reading.emotions.values(), *ages_s, *intervals]


# --- at real pace -----------------------------------------------------------------------------------------


def at_real_pace(bundle: Path, folder: Path, seconds: float) -> list[Figure]:
    """Measure the device process from outside: one whole run, and several starts."""
    path, timeline = clip(folder, seconds), folder / "timeline-device.jsonl"
    run = measure_device(bundle, path, timeline)
    read = read_timeline(timeline)
    assert read.narrations, "the run has no narration"
    latency_ms = [r.latency_ms for r in read.readings[WARM_UP_READINGS:] if r.latency_ms is not None]
    short = folder / "timeline-start.jsonl"
    starts_s = [time_to_first_reading_s(bundle, path, short) for _ in range(STARTS - 1)]
    return [
        figure_of("CPU time of vaemotion --help", [help_cpu_s() for _ in range(STARTS)], "s", at_most=0.15),
        figure_of("start to first reading", [run.first_reading_s, *starts_s], "s", at_most=3),
        figure_of("peak memory of the device process", [run.peak_mb], "MB", at_most=300),
        figure_of("CPU at real pace, of one core", [100 * run.cpu_share], "%"),
        figure_of("latency, median", [float(np.percentile(latency_ms, 50))], "ms"),
        figure_of("latency, 99th percentile", [float(np.percentile(latency_ms, 99))], "ms"),
    ]


def beside_the_engines(bundle: Path, folder: Path, seconds: float) -> Figure:
    """Measure the CPU time of a run at real pace without its engines and without decoding the video."""
    path, hop_s = clip(folder, seconds), read_manifest(bundle).front_end.windows.frame_hop_s
    run = partial(run_at_real_pace, bundle, path, folder / "timeline-paced.jsonl")
    costs = interleaved_processes({"run": run, "decoding": partial(decode_video, path, hop_s)})
    engines = [sum(c.stages[role]["cpu_s"] for role in ENGINE_ROLES) / c.media_s for c in costs["run"]]
    total, decoding = ([c.cpu_s / c.media_s for c in costs[name]] for name in ("run", "decoding"))
    rest = [100 * (t - e - d) for t, e, d in zip(total, engines, decoding, strict=True)]
    shares = {"all": total, "engines": engines, "film decoding": decoding}
    note = ", ".join(f"{name} {statistics.median(share):.1%}" for name, share in shares.items())
    if dropped := sum(c.dropped for c in costs["run"]):
        note += f"; the machine was too busy: {dropped} ticks or messages dropped"
    return figure_of("neither engine nor video decoding, of one core", rest, "%", note, at_most=15)


# --- over an hour -----------------------------------------------------------------------------------------


def over_an_hour(bundle: Path, folder: Path, minutes: int, threads: int) -> tuple[Figure, Curve]:
    """Measure CPU time per reading by minute, and the ratio of the last to the first tenth of the minutes.

    The first minute warms up and is left out.
    """
    path = clip(folder, 60 * minutes, fps=10, width=160, height=90)
    timeline = folder / "timeline-hour.jsonl"
    with own_process() as pool:
        cpu_s = pool.submit(cpu_s_at_readings, bundle, path, timeline, threads).result()
    per_minute = len(cpu_s) // minutes
    # Per reading, for each minute after the first.
    ms = 1e3 * np.diff(cpu_s[per_minute - 1 :: per_minute][:minutes]) / per_minute
    tenth = max(1, minutes // 10)
    first_ms, last_ms = float(ms[:tenth].mean()), float(ms[-tenth:].mean())
    note = f"first {first_ms:.3g} ms, last {last_ms:.3g} ms"
    what = f"cost per reading, the end of {minutes} minutes over their start"
    figure = figure_of(what, [last_ms / first_ms], "×", note, at_most=1.1)
    x = [float(minute) for minute in range(2, minutes + 1)]
    y_label = "CPU time per reading, ms"
    return figure, Curve("hour", "at full pace", "minutes of media", y_label, x, ms.tolist())


def figure_of(
    what: str, values: Sequence[float], unit: str, note: str = "", *, at_most: float | None = None
) -> Figure:
    """Make a figure of the median of values with their range."""
    return Figure(what, statistics.median(values), min(values), max(values), unit, note, at_most=at_most)
