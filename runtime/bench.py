"""``vaemotion bench``: what each file of a bundle costs on this machine, and what the whole costs.

In: a bundle. Out: ``Bench``, one ``Row`` for each engine and language model and one for what a run opens, all of it; written as
bench.json, bench.md and bench.png. Every file is opened in processes of its own, so that its memory and load time are its own;
in each round every file has its turn, so that whatever else this machine does meets them all alike.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runtime.bench_plot import plot_bench
from runtime.bench_probe import Figures, probe_component, probe_whole
from runtime.bench_report import WHOLE, Bench, Delta, Row, bench_table, markdown, sentences
from runtime.doctor_probes import ProbeError, in_child
from runtime.threads import thread_budget
from runtime.timeline import write_whole
from vaemotion.contract.bundle import ENGINE_ROLES, Component, Manifest, read_manifest, verify_files
from vaemotion.contract.errors import UserError

ROUNDS = 5
RUNS = 20  # of one file in one round
PROCESS_S = 3600.0  # for one process: the first one may build TensorRT's engines


def bench(bundle: Path, out: Path, as_json: bool, rounds: int = ROUNDS) -> None:
    """``vaemotion bench``: measure, print, and write bench.json, bench.md and bench.png into ``out``."""
    out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is said before minutes of measuring
    measured = measure(bundle, rounds=rounds, progress=Console(stderr=True))
    files, no_plot = write_bench(measured, out)
    if as_json:
        print(bench_json(measured), end="")
        return
    console = Console(highlight=False)
    console.print(bench_table(measured, console.width))
    for line in [*sentences(measured), *no_plot]:
        console.print(f"• {line}", markup=False)
    console.print(f"written: {', '.join(map(str, files))}", markup=False)


def write_bench(measured: Bench, out: Path) -> tuple[list[Path], list[str]]:
    """Write the three files; returns them, and the reason where there is no plot: matplotlib is an extra."""
    files = [out / "bench.json", out / "bench.md"]
    write_whole(files[0], bench_json(measured).encode())
    write_whole(files[1], markdown(measured).encode())
    try:
        plot_bench(measured, out / "bench.png")
    except UserError as error:
        return files, [f"no bench.png: {error}"]
    return [*files, out / "bench.png"], []


def bench_json(measured: Bench) -> str:
    """The record with what follows from it."""
    derived = {"readings_per_s": measured.readings_per_s, "sentences": sentences(measured)}
    return json.dumps({"schema": 1, **asdict(measured), **derived}, indent=1) + "\n"


def measure(
    bundle: Path, *, rounds: int = ROUNDS, runs: int = RUNS, progress: Console | None = None
) -> Bench:
    """Open and run every engine and language model of a bundle. Raises BundleError, or ProbeError where a run could not open it."""
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)  # and so every file is in the cache when its load is timed
    cpus, before = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    threads = thread_budget().engines
    timed = [c for c in manifest.components if c.role in (*ENGINE_ROLES, "language_model")]
    figures: dict[str, list[Figures | str]] = {_key(c): [] for c in timed} | {WHOLE: []}
    for turn in _with_bar([t for n in range(rounds) for t in _turns(timed, n)], progress):
        figures[_key(turn)].append(_one_turn(bundle, turn, runs, threads))
    whole = figures[WHOLE][0]
    if isinstance(whole, str):
        raise ProbeError(f"{bundle} cannot be run here: {whole}")
    taken = {(role, precision): runs_on for role, precision, runs_on in whole["opened"]}
    windows = manifest.front_end.windows
    return Bench(
        bundle=manifest.name,
        machine=machine_name(),
        cpus=cpus,
        threads=threads,
        load_average=(before, os.getloadavg()[0]),
        rows=tuple(_row(manifest, c, figures[_key(c)], taken) for c in timed),
        whole=_whole_row(manifest, figures[WHOLE], taken),
        asked_hz=1 / min(windows.frame_hop_s, windows.audio_stride_s),
    )


def _key(component: Component | None) -> str:
    return WHOLE if component is None else f"{component.role}/{component.precision}"


def _turns(timed: list[Component], number: int) -> list[Component | None]:
    """Every file and (None) the whole; every second round backwards, so that a drift meets all of them alike."""
    turns = [*timed, None]
    return turns[::-1] if number % 2 else turns


def _with_bar(turns: list[Component | None], console: Console | None) -> Iterator[Component | None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=console is None) as bar:
        task = bar.add_task("", total=len(turns))
        for turn in turns:
            bar.update(task, description=WHOLE if turn is None else turn.label)
            yield turn
            bar.advance(task)


def _one_turn(bundle: Path, component: Component | None, runs: int, threads: int) -> Figures | str:
    """One process's figures, or why there are none."""
    try:
        if component is None:
            return in_child(probe_whole, str(bundle), runs, threads, limit_s=PROCESS_S)
        arguments = (str(bundle), component.role, component.precision, runs, threads)
        return in_child(probe_component, *arguments, limit_s=PROCESS_S)
    except ProbeError as error:
        return str(error)


def _row(
    manifest: Manifest, component: Component, turns: list[Figures | str], taken: dict[tuple[str, str], str]
) -> Row:
    key = (component.role, component.precision)
    stored: dict[str, Any] = manifest.verification.get("components", {}).get(_key(component), {})
    accuracy = tuple(Delta(m, float(v["delta"]), v.get("bound")) for m, v in stored.items())
    return _summary(turns, *key, component.bytes, key in taken, accuracy)


def _whole_row(manifest: Manifest, turns: list[Figures | str], taken: dict[tuple[str, str], str]) -> Row:
    """Every file that a run opens counts; the golden vectors, which it reads to check itself, do not."""
    others = ("token_embeddings", "delimiters", "tokenizer")
    opened = [manifest.component(*key) for key in taken] + [manifest.component(role) for role in others]
    return _summary(turns, WHOLE, "", sum(c.bytes for c in opened), True, ())


def _summary(
    turns: list[Figures | str],
    role: str,
    precision: str,
    size_bytes: int,
    taken: bool,
    accuracy: tuple[Delta, ...],
) -> Row:
    """One row of all rounds' figures: times pooled, the load's median, the memory's maximum."""
    whole = [turn for turn in turns if not isinstance(turn, str)]
    about = (role, precision, size_bytes, taken)
    if len(whole) < len(turns):
        reason = next(turn for turn in turns if isinstance(turn, str))
        return Row(*about, False, "", None, None, None, None, None, 0, (), None, accuracy, reason)
    runs_ms = np.concatenate([turn["runs_ms"] for turn in whole])
    rates = np.concatenate([turn["prompt_tokens_per_s"] for turn in whole])
    return Row(
        *about,
        foreign=any(turn["foreign"] for turn in whole),
        runs_on="; ".join(dict.fromkeys(runs_on for _, _, runs_on in whole[0]["opened"])),
        load_s=float(np.median([turn["load_s"] for turn in whole])),
        peak_bytes=max(turn["peak_bytes"] for turn in whole),
        added_bytes=max(turn["peak_bytes"] - turn["before_bytes"] for turn in whole),
        p50_ms=float(np.percentile(runs_ms, 50)),
        p95_ms=float(np.percentile(runs_ms, 95)),
        runs=len(runs_ms),
        round_p50_ms=tuple(float(np.median(turn["runs_ms"])) for turn in whole),
        prompt_tokens_per_s=float(np.median(rates)) if len(rates) else None,
        accuracy=accuracy,
    )


def machine_name() -> str:
    """Processor and system, for a report's head."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown processor'}, {platform.machine()}"
