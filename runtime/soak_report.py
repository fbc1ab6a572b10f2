"""What ``vaemotion soak`` found, and how it reads: the record, its verdict, sentences for the terminal, Markdown.

In: figures that ``runtime.soak`` and ``runtime.soak_observer`` gathered. Out: text. Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from runtime.faults import Fault
from runtime.timeline import counted, duration_words

LARGEST_SLOPE_MB_PER_H = 1.0  # of resident memory
SLOPE_HOURS = 3.0  # in a shorter soak queues and pools are still filling
LARGEST_CLOCK_ERROR_MS = 20.0


@dataclass(frozen=True)
class DeviceRecord:
    """``outages``: faults in which the device gave nothing new; ``losses``: how often the runtime called it lost or frozen;
    ``back_s``: for each outage that was over early enough, from the device's return to the first reading with it."""

    outages: int
    losses: int
    back_s: tuple[float, ...]


@dataclass(frozen=True)
class Soak:
    """One soak. ``hours`` are simulated, and so is every time but ``wall_s``, ``moment_ms`` (a moment's work: p50, p99, max) and ``stages_ms``.

    ``share``: of ``timeline``'s bins of ``bin_s`` each, moments by path; ``states_s`` and ``narrator_s``: seconds in each state of the show
    and of the narrator's governor; ``missed``: moments whose work took longer than ``deadline_ms``, ``missed_narrating`` those of them in
    which a sentence was made, which live has a thread of its own. ``memory``: (hour, MB); ``slope_mb_per_h`` of those after ``warm_up_h``.
    ``clock_error_ms``: of the microphone's sample clock against the truth, ``clock_first_error_ms`` in the first seconds of a stream.
    ``stale``: readings that named a modality without true evidence, with examples. ``failure``: what ended the run, where it was not the end.
    """

    bundle: str
    bundle_sha256: str
    media: str
    machine: str
    threads: int
    seed: int
    speed: str
    asked_hours: float
    hours: float
    wall_s: float
    moment_s: float
    faults: tuple[Fault, ...]
    readings: int
    readings_sha256: str
    paths: dict[str, int]
    path_changes: int
    states_s: dict[str, int]
    state_changes: int
    bin_s: float
    timeline: tuple[dict[str, int], ...]
    memory: tuple[tuple[float, float], ...]
    warm_up_h: float
    slope_mb_per_h: float | None
    dropped: dict[str, int]
    moments: int
    moment_ms: tuple[float, float, float]
    deadline_ms: float
    missed: int
    missed_narrating: int
    devices: dict[str, DeviceRecord]
    clock_error_ms: float
    clock_first_error_ms: float
    stale: int
    stale_examples: tuple[str, ...]
    narrations: int
    narrations_incomplete: int
    narrator_s: dict[str, int]
    encodes: dict[str, int]
    stages_ms: dict[str, dict[str, float]]
    failure: str | None

    @property
    def faults_by_kind(self) -> dict[str, int]:
        """Those that had begun when the soak ended."""
        kinds = [fault.kind for fault in self.faults if fault.start_s < self.hours * 3600]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def problems(found: Soak) -> list[str]:
    """One sentence for each condition that was not met; none: the soak was passed."""
    lines: list[str] = []
    if found.failure is not None:
        lines.append(f"the run failed after {duration_words(found.hours * 3600)}: {found.failure}")
    if found.stale:
        lines.append(
            f"{counted(found.stale, 'stale value')} published as live, the first: {found.stale_examples[0]}"
        )
    slope = found.slope_mb_per_h
    if slope is not None and found.hours > SLOPE_HOURS and slope > LARGEST_SLOPE_MB_PER_H:
        lines.append(
            f"memory grew by {slope:.2f} MB per simulated hour, allowed is {LARGEST_SLOPE_MB_PER_H:g}"
        )
    if found.clock_error_ms >= LARGEST_CLOCK_ERROR_MS:
        lines.append(
            f"the sample clock was off by {found.clock_error_ms:.1f} ms, allowed are {LARGEST_CLOCK_ERROR_MS:g}"
        )
    return lines


def sentences(found: Soak) -> list[str]:
    """The soak in a few lines, for a terminal."""
    kinds = found.faults_by_kind
    p50, p99, longest = found.moment_ms
    lines = [
        f"{duration_words(found.hours * 3600)} in {duration_words(found.wall_s)} of wall time, "
        f"{counted(sum(kinds.values()), 'fault')} of {counted(len(kinds), 'kind')}",
        f"{counted(found.readings, 'reading')}: {_shares(found.paths)}; {counted(found.path_changes, 'change')} of path, "
        f"{found.state_changes:,} of the show's state",
        _memory_words(found),
        f"a moment's work: p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {longest:.0f} ms; {found.missed:,} took longer than the "
        f"{found.deadline_ms:g} ms that a live one has, {found.missed_narrating:,} of them with a narration inside",
    ]
    lines += [_device_words(role, device) for role, device in found.devices.items()]
    dropped = ", ".join(f"{count:,} {what}" for what, count in found.dropped.items() if count) or "nothing"
    return [
        *lines,
        f"the sample clock's largest error: {found.clock_error_ms:.1f} ms, {found.clock_first_error_ms:.1f} ms in a stream's first seconds",
        f"stale values published as live: {found.stale:,}",
        f"{counted(found.narrations, 'narration')}, {found.narrations_incomplete:,} of them cancelled or cut; "
        f"the governor: {_shares(found.narrator_s)}",
        f"dropped: {dropped}",
    ]  # fmt: skip


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in ordered) or "none"


def _memory_words(found: Soak) -> str:
    if not found.memory:
        return "memory: not measured, the soak was too short"
    first, last = found.memory[0][1], found.memory[-1][1]
    slope = (
        ""
        if found.slope_mb_per_h is None
        else f", {found.slope_mb_per_h:+.2f} MB per simulated hour after warm-up"
    )
    judged = "" if found.hours > SLOPE_HOURS else f" (judged from {SLOPE_HOURS:g} h on)"
    return f"memory: {first:.0f} MB at first, {last:.0f} MB at last{slope}{judged}"


def _device_words(role: str, device: DeviceRecord) -> str:
    words = f"{role}: {counted(device.outages, 'outage')}, {counted(device.losses, 'time')} lost or frozen while live"
    if not device.back_s:
        return words
    return f"{words}; in a reading again {median(device.back_s):.1f} s (median) to {max(device.back_s):.1f} s after its return"


def markdown(found: Soak) -> str:
    """soak.md: verdict, sentences, and the tables behind them."""
    failed = problems(found)
    verdict = "Passed." if not failed else "Failed: " + "; ".join(failed) + "."
    lines = [f"# {found.bundle}: a soak of {duration_words(found.hours * 3600)}", "", verdict, ""]
    lines += [f"- {line}" for line in sentences(found)]
    lines += _table("Faults", ("kind", "count"), found.faults_by_kind)
    lines += _table("Readings by path", ("path", "readings"), found.paths)
    lines += _table("Seconds in each state of the show", ("state", "s"), found.states_s)
    lines += _table("Seconds in each state of the narrator", ("state", "s"), found.narrator_s)
    lines += _table("Dropped", ("what", "count"), found.dropped)
    lines += _table("Encodes", ("component", "count"), found.encodes)
    stages = {
        stage: f"{ms['p50']:.2f} / {ms['p95']:.2f} / {ms['max']:.1f}" for stage, ms in found.stages_ms.items()
    }
    lines += _table("Time per stage, the newest few thousand", ("stage", "p50 / p95 / max ms"), stages)
    lines += ["", "## How", ""]
    lines.append(
        f"`vaemotion soak` with `--hours {found.asked_hours:g} --speed {found.speed} --seed {found.seed} --faults {len(found.faults)}`; {found.media}; "
        f"a moment every {found.moment_s:g} s of simulated time; {found.machine}, {found.threads} threads. SHA-256 of the readings: "
        f"`{found.readings_sha256}`. docs/soak.md says what is simulated and what is not."
    )
    return "\n".join(lines) + "\n"


def _table(title: str, heads: tuple[str, str], rows: dict[str, int] | dict[str, str]) -> list[str]:
    body = [f"| {name} | {value} |" for name, value in rows.items()] or ["| – | – |"]
    return ["", f"## {title}", "", f"| {heads[0]} | {heads[1]} |", "| - | -: |", *body]
