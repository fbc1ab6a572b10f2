"""The report of ``vaemotion soak``: verdict, sentences for the terminal, soak.json and soak.md.

In: a ``Soak``. Out: text.
"""

from __future__ import annotations

import json
from statistics import median

from runtime.commands.soak.records import DeviceRecord, Soak, TickTimes, flat
from vaemotion.contract.words import counted, duration_words, markdown_table

LARGEST_SLOPE_MB_PER_H = 1.0  # of resident memory
SLOPE_HOURS = 3.0  # in a shorter soak queues and pools are still filling
LARGEST_CLOCK_ERROR_MS = 20.0
SCHEMA = 1  # of soak.json


def problems(found: Soak) -> list[str]:
    """Return one sentence for each condition that was not met; none: the soak passed."""
    lines: list[str] = []
    if found.run.failure is not None:
        lines.append(f"the run failed after {duration_words(found.duration_s)}: {found.run.failure}")
    if found.perceived.stale:
        stale = counted(found.perceived.stale, "stale value")
        lines.append(f"{stale} published as live, the first: {found.perceived.stale_examples[0]}")
    slope = found.growth.slope_mb_per_h
    if slope is not None and found.run.hours > SLOPE_HOURS and slope > LARGEST_SLOPE_MB_PER_H:
        lines.append(f"memory grew by {slope:.2f} MB per simulated hour (limit {LARGEST_SLOPE_MB_PER_H:g})")
    error_ms = found.simulated.clock_error_ms
    if error_ms >= LARGEST_CLOCK_ERROR_MS:
        lines.append(f"the sample clock was off by {error_ms:.1f} ms (limit {LARGEST_CLOCK_ERROR_MS:g})")
    return lines


def sentences(found: Soak) -> list[str]:
    """Return the soak in a few lines, for a terminal."""
    kinds, perceived, narrated = found.faults_by_kind, found.perceived, found.narrated
    dropped = [f"{count:,} {name}" for name, count in found.totals.dropped.items() if count]
    return [
        f"{duration_words(found.duration_s)} simulated in {duration_words(found.run.wall_s)}, "
        f"{counted(sum(kinds.values()), 'fault')} of {counted(len(kinds), 'kind')}",
        f"{counted(perceived.readings, 'reading')}: {_shares(perceived.paths)}; "
        f"{counted(perceived.path_changes, 'path change')}, "
        f"{counted(found.show.state_changes, 'state change')} of the show",
        _memory_sentence(found),
        _ticks_sentence(found.ticks),
        *(_device_sentence(role, device) for role, device in found.simulated.devices.items()),
        f"largest error of the sample clock: {found.simulated.clock_error_ms:.1f} ms; "
        f"{found.simulated.clock_first_error_ms:.1f} ms in a stream's first seconds",
        f"stale values published as live: {perceived.stale:,}",
        f"{counted(narrated.narrations, 'narration')}, "
        f"{sum(narrated.narrations_withheld.values()):,} withheld; "
        f"governor: {_shares(narrated.narrator_s)}",
        f"dropped: {', '.join(dropped) or 'nothing'}",
    ]


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in ordered) or "none"


def _memory_sentence(found: Soak) -> str:
    growth = found.growth
    if not growth.memory:
        return "memory: not measured, the soak was too short"
    sentence = f"memory: {growth.memory[0][1]:.0f} MB at the start, {growth.memory[-1][1]:.0f} MB at the end"
    if growth.slope_mb_per_h is not None:
        sentence += f", {growth.slope_mb_per_h:+.2f} MB per simulated hour after warm-up"
    return sentence if found.run.hours > SLOPE_HOURS else f"{sentence} (judged from {SLOPE_HOURS:g} h on)"


def _ticks_sentence(ticks: TickTimes) -> str:
    p50, p99, longest = ticks.moment_ms
    return (
        f"work per tick: p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {longest:.0f} ms; "
        f"{counted(ticks.missed, 'tick')} longer than the {ticks.deadline_ms:g} ms of a live run, "
        f"{ticks.missed_narrating:,} with a narration"
    )


def _device_sentence(role: str, device: DeviceRecord) -> str:
    losses = counted(device.losses, "time")
    sentence = f"{role}: {counted(device.outages, 'outage')}, lost or frozen {losses} while live"
    if not device.back_s:
        return sentence
    back_s = f"{median(device.back_s):.1f} s (median) to {max(device.back_s):.1f} s"
    return f"{sentence}; in a reading again {back_s} after its return"


def soak_json(found: Soak) -> str:
    """Return soak.json: the fields of all records side by side, and what follows from them."""
    derived = {
        "faults_by_kind": found.faults_by_kind,
        "problems": problems(found),
        "sentences": sentences(found),
    }
    return json.dumps({"schema": SCHEMA, **flat(found), **derived}, indent=1) + "\n"


def markdown(found: Soak) -> str:
    """Return soak.md: verdict, sentences, and the tables behind them."""
    failed, setup, totals = problems(found), found.setup, found.totals
    verdict = "Passed." if not failed else "Failed: " + "; ".join(failed) + "."
    lines = [f"# {setup.bundle}: a soak of {duration_words(found.duration_s)}", "", verdict, ""]
    lines += [f"- {line}" for line in sentences(found)]
    lines += _table("Faults", ("kind", "count"), found.faults_by_kind)
    lines += _table("Readings by path", ("path", "readings"), found.perceived.paths)
    lines += _table("Seconds in each state of the show", ("state", "s"), found.show.states_s)
    lines += _table("Seconds in each state of the narrator", ("state", "s"), found.narrated.narrator_s)
    lines += _table("Dropped", ("what", "count"), totals.dropped)
    lines += _table("Encodes", ("component", "count"), totals.encodes)
    stages = {
        stage: f"{ms['p50']:.2f} / {ms['p95']:.2f} / {ms['max']:.1f}"
        for stage, ms in totals.stages_ms.items()
    }
    lines += _table("Time per stage, the newest few thousand", ("stage", "p50 / p95 / max ms"), stages)
    lines += [
        "",
        "## How",
        "",
        f"`vaemotion soak` with `--hours {setup.asked_hours:g} --speed {setup.speed} --seed {setup.seed} "
        f"--faults {len(setup.faults)}`; {setup.media}; a tick every {found.run.moment_s:g} s of simulated "
        f"time; {setup.machine}, {setup.threads} threads. SHA-256 of the readings: "
        f"`{found.perceived.readings_sha256}`. docs/soak.md says what is simulated and what is not.",
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, heads: tuple[str, str], rows: dict[str, int] | dict[str, str]) -> list[str]:
    return ["", f"## {title}", "", markdown_table(heads, rows.items() or [("–", "–")], right=[1])]
