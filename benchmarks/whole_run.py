"""The whole runtime: against PyTorch driving the same model, as a device process at real pace, and over an hour of media.

In: the suite's working folder. Out: a section. Whatever is timed runs in a process of its own (``benchmarks.device_runs``).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import torch_peers
from benchmarks.device_runs import (
    Spent,
    apart,
    decoded,
    help_cpu_s,
    in_turns,
    marks,
    ours,
    paced,
    start,
    whole,
)
from benchmarks.figures import Curve, Figure, Section, times_as_fast
from benchmarks.material import clip, tiny_bundle
from benchmarks.timing import Times
from runtime.messages import Reading
from runtime.moments import AT_ONCE
from runtime.timeline import read_timeline
from vaemotion.contract.bundle import ENGINE_ROLES, read_manifest

CLOSE = 1e-3  # largest difference between two contenders' readings, in any of their numbers
STARTS = 5
WARM_UP_READINGS = 20  # of a run at real pace, its first two seconds
OURS, ANEW = "runtime", "eager, window anew"
CACHED, BATCHED = "eager, our caching", "eager, our caching and batches"
METHOD = """`vaemotion-tiny` in FP32 over a procedural clip of 480p at 30 frames a second with sound, ten readings a second; {threads} threads for each contender, each in a
process of its own that had opened its model and run twice before. The peers are PyTorch eager under `inference_mode`: *window anew* prepares and encodes at each reading, in one
batch, all pictures of the window and its whole log-mel; *our caching* is our own runtime, moment by moment, with the checkpoint's modules as engines. The runtime encodes {at_once} moments of a
file in one batch, because nobody waits for the first of them; what remains of its lead over a peer that is given that, too, is the last row. All decode with the same
code, write the same JSON lines and have no narrator; their readings are asserted equal within {close:g} in every number. PyTorch's OpenMP threads
spin while they wait, its default and the faster setting on idle cores (see the encoders).

*At real pace* is `vaemotion run BUNDLE CLIP --pace real --out jsonl:… --out osc:…` as a user starts it, narrator on, watched from outside; that no torch is mapped into it is asserted.
*Neither engine nor video decoding* is a run at real pace into JSON lines and OSC, without narrator: CPU time of its whole process, less the CPU time of the engines' stages (one thread each, so that
they compute in the loop's thread), less the CPU time of a process that only decodes the film, at full speed, and converts the pictures that a run looks at to RGB; the sound's decoding
and resampling count as ours.

*Cost per reading* is CPU time at full pace over {minutes} minutes of media at 160 × 90 and 10 frames a second. They are one minute repeated, so that the same media are compared; the first
minute warms up."""


def measure(folder: Path, full: bool) -> Section:
    folder = folder.resolve()
    bundle, threads, minutes = tiny_bundle(folder), len(os.sched_getaffinity(0)), 60 if full else 6
    figures = against_peers(bundle, folder, 30 if full else 10, threads)
    figures += at_real_pace(bundle, folder, 60 if full else 15)
    figures.append(beside_the_engines(bundle, folder, 30 if full else 5))
    constant, curve = over_an_hour(bundle, folder, minutes, threads)
    method = METHOD.format(threads=threads, close=CLOSE, minutes=minutes, at_once=AT_ONCE)
    return Section("Whole runtime", method, [*figures, constant], [curve])


# --- against peers ----------------------------------------------------------------------------------------------------


def against_peers(bundle: Path, folder: Path, seconds: float, threads: int) -> list[Figure]:
    """Media seconds per second, and how many times the peers'."""
    path = clip(folder, seconds)
    works = {
        OURS: ours,
        ANEW: torch_peers.window_anew,
        CACHED: torch_peers.our_caching,
        BATCHED: partial(torch_peers.our_caching, at_once=AT_ONCE),
    }
    timelines = {name: folder / f"timeline {name}.jsonl" for name in works}
    spent = in_turns(
        {name: partial(work, bundle, path, timelines[name], threads) for name, work in works.items()}
    )
    for peer in (ANEW, CACHED, BATCHED):
        assert_same(timelines[OURS], timelines[peer], seconds)
    times = {name: per_media_second(found) for name, found in spent.items()}
    return [
        figure_of("media seconds per second", [1e3 / ms for ms in times[OURS].wall_ms], "s/s"),
        times_as_fast("a second of media: window anew", times, OURS, ANEW, at_least=5),
        times_as_fast("a second of media: the same caching", times, OURS, CACHED, at_least=1.8),
        times_as_fast("a second of media: the same caching and batches", times, OURS, BATCHED),
    ]  # fmt: skip


def per_media_second(spent: Sequence[Spent]) -> Times:
    return Times([1e3 * s.wall_s / s.media_s for s in spent], [1e3 * s.cpu_s / s.media_s for s in spent])


def assert_same(ours_file: Path, peers_file: Path, film_s: float) -> None:
    """The same readings at the same moments: who does other work is no peer. Behind the film's end (two moments) only the moments are compared:
    ``window_at`` lets the last picture stand on one grid point more than a stream does that knows the film's end."""
    mine, theirs = (read_timeline(file).readings for file in (ours_file, peers_file))
    assert [(r.time_s, r.path) for r in mine] == [(r.time_s, r.path) for r in theirs], "other moments"
    values = [np.array([_numbers(r) for r in readings if r.time_s < film_s]) for readings in (mine, theirs)]
    worst = float(np.abs(values[0] - values[1]).max())
    assert worst < CLOSE, f"the readings of {peers_file.stem} differ by up to {worst:.2g}"
    print(f"{len(mine)} readings, {peers_file.stem}: largest difference {worst:.2g}", flush=True)


def _numbers(reading: Reading) -> list[float]:
    ages_s = [-1.0 if age_s is None else age_s for age_s in (reading.visual_age_s, reading.audio_age_s)]
    intervals = [reading.confidence or 0.0, reading.valence_interval or 0.0, reading.arousal_interval or 0.0]
    affect = [reading.valence, reading.arousal, reading.valence_sd, reading.arousal_sd]
    return [*affect, *reading.emotions.values(), *ages_s, *intervals]


# --- at real pace -----------------------------------------------------------------------------------------------------


def at_real_pace(bundle: Path, folder: Path, seconds: float) -> list[Figure]:
    """The device process from outside: one whole run, and some starts more."""
    path, timeline = clip(folder, seconds), folder / "timeline-device.jsonl"
    run = whole(bundle, path, timeline)
    read = read_timeline(timeline)
    assert read.narrations, "the narrator said nothing"
    latency_ms = [r.latency_ms for r in read.readings[WARM_UP_READINGS:] if r.latency_ms is not None]
    starts_s = [start(bundle, path, folder / "timeline-start.jsonl") for _ in range(STARTS - 1)]
    return [
        figure_of("CPU time of vaemotion --help", [help_cpu_s() for _ in range(STARTS)], "s", at_most=0.15),
        figure_of("start to first reading", [run.first_reading_s, *starts_s], "s", at_most=3),
        figure_of("peak memory of the device process", [run.peak_mb], "MB", at_most=300),
        figure_of("CPU at real pace, of one core", [100 * run.cpu_share], "%"),
        figure_of("latency, median", [float(np.percentile(latency_ms, 50))], "ms"),
        figure_of("latency, 99th percentile", [float(np.percentile(latency_ms, 99))], "ms"),
    ]


def beside_the_engines(bundle: Path, folder: Path, seconds: float) -> Figure:
    """All that a run at real pace needs of one core, less the engines, less decoding the film."""
    path, hop_s = clip(folder, seconds), read_manifest(bundle).front_end.windows.frame_hop_s
    run = partial(paced, bundle, path, folder / "timeline-paced.jsonl")
    spent = in_turns({"run": run, "decoding": partial(decoded, path, hop_s)})
    engines = [sum(s.stages[role]["cpu_s"] for role in ENGINE_ROLES) / s.media_s for s in spent["run"]]
    all_of_it, decoding = ([s.cpu_s / s.media_s for s in spent[name]] for name in ("run", "decoding"))
    left = [100 * (a - e - d) for a, e, d in zip(all_of_it, engines, decoding, strict=True)]
    shares = {"all": all_of_it, "engines": engines, "film decoding": decoding}
    told = ", ".join(f"{name} {statistics.median(share):.1%}" for name, share in shares.items())
    if dropped := sum(s.dropped for s in spent["run"]):
        told += f"; the machine was too busy: {dropped} moments dropped"
    return figure_of("neither engine nor video decoding, of one core", left, "%", told, at_most=15)


# --- over an hour -----------------------------------------------------------------------------------------------------


def over_an_hour(bundle: Path, folder: Path, minutes: int, threads: int) -> tuple[Figure, Curve]:
    """CPU time per reading, minute by minute; the last tenth of the minutes over as many behind the first one."""
    path = clip(folder, 60 * minutes, fps=10, width=160, height=90)
    with apart() as pool:
        found = pool.submit(marks, bundle, path, folder / "timeline-hour.jsonl", threads).result()
    per_minute = len(found) // minutes
    ms = (
        1e3 * np.diff(found[per_minute - 1 :: per_minute][:minutes]) / per_minute
    )  # of each minute but the first
    tenth = max(1, minutes // 10)
    first_ms, last_ms = float(ms[:tenth].mean()), float(ms[-tenth:].mean())
    told = f"first {first_ms:.3g} ms, last {last_ms:.3g} ms"
    figure = figure_of(f"cost per reading, the end of {minutes} minutes over their start", [last_ms / first_ms], "×", told, at_most=1.1)  # fmt: skip
    x = [float(minute) for minute in range(2, minutes + 1)]
    return figure, Curve(
        "hour", "at full pace", "minutes of media", "CPU time per reading, ms", x, ms.tolist()
    )


def figure_of(
    what: str, values: Sequence[float], unit: str, told: str = "", *, at_most: float | None = None
) -> Figure:
    """The median of what was measured, with its range."""
    return Figure(what, statistics.median(values), min(values), max(values), unit, told, at_most=at_most)
