"""``vaemotion bench``: size, load time, memory and speed of each file of a bundle on this machine.

In: a bundle. Out: ``Bench`` with one ``BenchRow`` for each engine and language model, and one for all files
that a run opens; written as bench.json, bench.md and bench.png. Each file is measured in processes of its
own, so that memory and load time are its own. Each round measures every file once, so that other load on the
machine affects all of them alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runtime.commands.bench.plot import plot_bench
from runtime.commands.bench.probe import Figures, probe_component, probe_whole
from runtime.commands.bench.report import WHOLE, Bench, BenchRow, Delta, bench_table, markdown, sentences
from runtime.machine.child_process import ProbeError, in_child
from runtime.machine.facts import machine_name, usable_cpus
from runtime.machine.threads import thread_budget
from vaemotion.contract.bundle import ENGINE_ROLES, Component, Manifest, read_manifest, verify_files
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.terminal import Terminal

ROUNDS = 5
RUNS = 20  # inferences of one file in one round
PROCESS_S = 3600.0  # time limit of one process: the first one may build TensorRT's engines


def bench(bundle: Path, out: Path, as_json: bool, rounds: int = ROUNDS) -> None:
    """Measure a bundle, print the figures, and write bench.json, bench.md and bench.png into ``out``."""
    out.mkdir(parents=True, exist_ok=True)  # fails before minutes of measuring where it cannot be made
    measured = measure(bundle, rounds=rounds, progress=Terminal(stderr=True))
    files, no_plot = write_bench(measured, out)
    if as_json:
        print(bench_json(measured), end="")
        return
    console = Terminal()
    console.print(bench_table(measured, console.width))
    for line in [*sentences(measured), *no_plot]:
        console.print(f"• {line}")
    console.print(f"written: {', '.join(map(str, files))}")


def write_bench(measured: Bench, out: Path) -> tuple[list[Path], list[str]]:
    """Write the report into ``out``. Returns its files, and why there is no plot: matplotlib is an extra."""
    files = [out / "bench.json", out / "bench.md"]
    write_whole(files[0], bench_json(measured))
    write_whole(files[1], markdown(measured))
    try:
        plot_bench(measured, out / "bench.png")
    except UserError as error:
        return files, [f"no bench.png: {error}"]
    return [*files, out / "bench.png"], []


def bench_json(measured: Bench) -> str:
    """Return the content of bench.json: the record and the figures derived from it."""
    derived = {"readings_per_s": measured.readings_per_s, "sentences": sentences(measured)}
    return json.dumps({"schema": 1, **asdict(measured), **derived}, indent=1) + "\n"


def measure(
    bundle: Path, *, rounds: int = ROUNDS, runs: int = RUNS, progress: Terminal | None = None
) -> Bench:
    """Open and run every engine and language model of a bundle, each in processes of its own.

    Raises BundleError for a damaged bundle, ProbeError where a run could not open it.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)  # so that every file is in the page cache when its load is timed
    cpus, before = usable_cpus(), os.getloadavg()[0]
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
    """Return one round's order: every file, then None for all files together; odd rounds go backwards.

    So a steady drift of the machine affects all of them alike.
    """
    turns = [*timed, None]
    return turns[::-1] if number % 2 else turns


def _with_bar(turns: list[Component | None], console: Terminal | None) -> Iterator[Component | None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=console is None) as bar:
        task = bar.add_task("", total=len(turns))
        for turn in turns:
            bar.update(task, description=WHOLE if turn is None else turn.label)
            yield turn
            bar.advance(task)


def _one_turn(bundle: Path, component: Component | None, runs: int, threads: int) -> Figures | str:
    """Measure one file (None: all of a run's) in a process of its own. Returns its figures, or the error."""
    try:
        if component is None:
            return in_child(probe_whole, str(bundle), runs, threads, limit_s=PROCESS_S)
        arguments = (str(bundle), component.role, component.precision, runs, threads)
        return in_child(probe_component, *arguments, limit_s=PROCESS_S)
    except ProbeError as error:
        return str(error)


def _row(
    manifest: Manifest, component: Component, turns: list[Figures | str], taken: dict[tuple[str, str], str]
) -> BenchRow:
    key = (component.role, component.precision)
    stored: dict[str, Any] = manifest.verification.get("components", {}).get(_key(component), {})
    accuracy = tuple(Delta(m, float(v["delta"]), v.get("bound")) for m, v in stored.items())
    return _summary(turns, *key, component.bytes, key in taken, accuracy)


def _whole_row(manifest: Manifest, turns: list[Figures | str], taken: dict[tuple[str, str], str]) -> BenchRow:
    """Return the row of all files that a run opens, without the golden vectors, which it only checks."""
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
) -> BenchRow:
    """Return one row from all rounds: times pooled, median of the load time, maximum of the memory."""
    done = [turn for turn in turns if not isinstance(turn, str)]
    about = (role, precision, size_bytes, taken)
    if len(done) < len(turns):
        reason = next(turn for turn in turns if isinstance(turn, str))
        return BenchRow(*about, accuracy=accuracy, failure=reason)
    runs_ms = np.concatenate([turn["runs_ms"] for turn in done])
    rates = np.concatenate([turn["prompt_tokens_per_s"] for turn in done])
    return BenchRow(
        *about,
        foreign=any(turn["foreign"] for turn in done),
        runs_on="; ".join(dict.fromkeys(runs_on for _, _, runs_on in done[0]["opened"])),
        load_s=float(np.median([turn["load_s"] for turn in done])),
        peak_bytes=max(turn["peak_bytes"] for turn in done),
        added_bytes=max(turn["peak_bytes"] - turn["before_bytes"] for turn in done),
        p50_ms=float(np.percentile(runs_ms, 50)),
        p95_ms=float(np.percentile(runs_ms, 95)),
        runs=len(runs_ms),
        round_p50_ms=tuple(float(np.median(turn["runs_ms"])) for turn in done),
        prompt_tokens_per_s=float(np.median(rates)) if len(rates) else None,
        accuracy=accuracy,
    )
