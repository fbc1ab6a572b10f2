"""``vaemotion soak``: days of an installation in minutes. The runtime's own wiring over simulated devices that fail by a seeded schedule.

In: a bundle, recordings or none, simulated hours, a seed. Out: soak.json, soak.md and soak.png, a summary, and an exit code. The encoders, the
EmoAdapter, the language model, the session, the show, the governor, the outboxes and the OSC controls are the real ones; the clock, the
devices, the temperature and the slow sink are simulated. docs/soak.md says more.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.bench import machine_name
from runtime.config import LOOPBACK, LiveConfig, NarratorConfig
from runtime.controls import Controls, Desk
from runtime.faults import Fault, schedule
from runtime.installation import Installation
from runtime.live import LiveFeed
from runtime.predictor import DevicePredictor, open_predictor
from runtime.run import describe
from runtime.session import Session
from runtime.simulated import SimulatedCamera, SimulatedMicrophone
from runtime.sinks.outbox import Outbox
from runtime.soak_media import Recording, make_recording, record_files
from runtime.soak_observer import PATHS, Observer, slope_mb_per_h, warm_up_h
from runtime.soak_plot import plot_soak
from runtime.soak_report import DeviceRecord, Soak, markdown, problems, sentences
from runtime.soak_world import SlowSink, World
from runtime.stop import Stop, signals
from runtime.threads import thread_budget
from runtime.timeline import duration_words, write_whole
from vaemotion.contract.bundle import MANIFEST_FILE, read_manifest, sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.windows import WindowConfig

MOMENT_S = (
    0.5  # between two readings, or the nearest the bundle's grid has: a day of ten a second would take hours
)
NARRATE_EVERY_S = 60.0  # a sentence costs as much as ten readings, and within the loop nothing runs beside it
LAST_MESSAGES_S = 60.0  # that the report is waited for when the run is over
DAY = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)  # opening hours must not make two soaks differ


def soak(
    bundle: Path,
    hours: float,
    speed: str,
    faults: int | None,
    seed: int,
    out: Path | None,
    media: Sequence[Path] = (),
    threads: int | None = None,
    narrate_every_s: float = NARRATE_EVERY_S,
) -> int:
    """``vaemotion soak``. Returns 0 when the soak was passed, 1 when not, 128 + the signal that ended it before."""
    factor = _factor(speed)
    if not 0 < hours <= 24 * 366:
        raise UsageError(f"--hours must be more than 0 and at most a year, got {hours:g}")
    planned = schedule(hours * 3600, faults, seed)
    console = Console(stderr=True, highlight=False)
    budget = thread_budget(threads or 0)
    with signals() as stop, open_predictor(bundle, threads=budget) as predictor:
        side_px = predictor.constants.front_end.image.side_px
        recording = record_files(media, side_px) if media else make_recording(side_px, seed)
        told = ", ".join(file.name for file in media) or "built-in film"
        plan = Plan(bundle, told, hours, speed, factor, planned, seed, budget.engines, narrate_every_s)
        found = rehearse(plan, predictor, recording, stop, console)
    failed = problems(found)
    console = Console(highlight=False)
    for line in sentences(found):
        console.print(f"• {line}", markup=False)
    if out is not None:
        console.print(f"written: {', '.join(map(str, write_soak(found, out)))}", markup=False)
    console.print("passed" if not failed else "\n".join(f"FAILED: {line}" for line in failed), markup=False)
    return 128 + stop.signal if stop.signal else int(bool(failed))


def write_soak(found: Soak, out: Path) -> list[Path]:
    """Write the report; soak.png only where matplotlib is installed, because it is an extra."""
    files = [out / "soak.json", out / "soak.md"]
    derived = {
        "faults_by_kind": found.faults_by_kind,
        "problems": problems(found),
        "sentences": sentences(found),
    }
    write_whole(files[0], (json.dumps({"schema": 1, **asdict(found), **derived}, indent=1) + "\n").encode())
    write_whole(files[1], markdown(found).encode())
    with contextlib.suppress(UserError):
        plot_soak(found, out / "soak.png")
        files.append(out / "soak.png")
    return files


def _factor(speed: str) -> float | None:
    """Simulated seconds per second; None for "max"."""
    if speed in ("max", "real"):
        return None if speed == "max" else 1.0
    with contextlib.suppress(ValueError):
        if 0 < (factor := float(speed)) < 1e6:
            return factor
    raise UsageError(f"--speed must be max, real, or simulated seconds per second such as 10, got {speed!r}")


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    bundle: Path
    media: str
    hours: float
    speed: str
    factor: float | None
    faults: list[Fault]
    seed: int
    threads: int
    narrate_every_s: float


def schedule_of(windows: WindowConfig) -> WindowConfig:
    """When something is due in a soak: a picture and a window of sound each ``MOMENT_S``, on the bundle's own grid."""
    moment_s = windows.frame_hop_s * max(1, round(MOMENT_S / windows.frame_hop_s))
    return replace(windows, frame_hop_s=moment_s, frame_spacing_s=moment_s, audio_stride_s=moment_s)


def rehearse(
    plan: Plan, predictor: DevicePredictor, recording: Recording, stop: Stop, console: Console
) -> Soak:
    """The run itself, wired as ``runtime.run`` wires a live one. Whatever ends it, there is a report."""
    windows, duration_s = predictor.constants.front_end.windows, plan.hours * 3600
    grid = schedule_of(windows)
    camera = SimulatedCamera(recording, plan.faults, plan.seed)
    microphone = SimulatedMicrophone(recording, plan.faults, plan.seed)
    failure: str | None = None
    with contextlib.ExitStack() as closing:
        controls = closing.enter_context(contextlib.closing(Controls(LOOPBACK, 0)))
        world = World(plan.faults, duration_s, grid.frame_hop_s, plan.factor, stop, controls)
        closing.callback(world.close)
        truths = {"camera": camera.truth, "microphone": microphone.truth}
        tell = closing.enter_context(_progress(console, plan))
        observer = Observer(truths, plan.faults, duration_s, grid.frame_hop_s, tell)
        feed = LiveFeed({"camera": camera, "microphone": microphone}, world, lambda: microphone.drift_ppm)
        installation = Installation(
            LiveConfig(narrator=NarratorConfig(plan.narrate_every_s)), feed, world, windows.frame_hop_s,
            local_time=lambda: DAY + datetime.timedelta(seconds=world.now_s()), headroom_c=world.headroom_c,
        )  # fmt: skip
        slow = SlowSink(world.sink_open)
        boxes = [
            Outbox("the report", observer, "wait", stop),
            Outbox("the slow sink", slow, "drop-oldest", stop),
        ]
        session = Session(
            predictor, feed, world, boxes, stop, "max", plan.narrate_every_s,
            desk=Desk(controls), installation=installation, schedule=grid,
        )  # fmt: skip
        try:
            session.run(describe(plan.bundle, plan.media, "max", predictor))
        except Exception as error:  # whatever it is, a soak tells it with everything else that it knows
            console.print(traceback.format_exc(), markup=False)
            failure = f"{type(error).__name__}: {error}"
        observer.closed.wait(LAST_MESSAGES_S)
    return _found(plan, world, observer, camera, microphone, (grid.frame_hop_s, windows.frame_hop_s), failure)


def _found(
    plan: Plan, world: World, observer: Observer, camera: SimulatedCamera, microphone: SimulatedMicrophone,
    hops_s: tuple[float, float], failure: str | None,
) -> Soak:  # fmt: skip
    """``hops_s``: of the soak, and of a live run."""
    end, hours, deadline_ms = observer.end, world.now_s() / 3600, 1000 * hops_s[1]
    done = world.work_ms >= 0
    work_ms, late_s = world.work_ms[done], world.times_s[done & (world.work_ms > deadline_ms)]
    warm_h = warm_up_h(hours)
    return Soak(
        bundle=read_manifest(plan.bundle).name, bundle_sha256=sha256_of(plan.bundle / MANIFEST_FILE), media=plan.media,
        machine=machine_name(), threads=plan.threads, seed=plan.seed, speed=plan.speed, asked_hours=plan.hours,
        hours=round(hours, 5), wall_s=round(world.wall_s, 1), moment_s=hops_s[0], faults=tuple(plan.faults),
        readings=observer.readings, readings_sha256=observer.readings_sha256,
        paths={path: observer.paths[path] for path in PATHS}, path_changes=observer.path_changes,
        states_s=dict(observer.states_s), state_changes=observer.state_changes,
        bin_s=observer.bin_s, timeline=tuple(dict(counts) for counts in observer.bins),
        memory=tuple(observer.memory), warm_up_h=round(warm_h, 3), slope_mb_per_h=slope_mb_per_h(observer.memory, warm_h),
        dropped={} if end is None else end.dropped,
        moments=len(work_ms), moment_ms=_spread(work_ms), deadline_ms=deadline_ms,
        missed=len(late_s), missed_narrating=int(np.isin(late_s.round(3), observer.narrated_s).sum()),
        devices={
            device.watch.name: DeviceRecord(device.outages, device.watch.losses, tuple(observer.back_s[device.watch.name]))
            for device in (camera, microphone)
        },
        clock_error_ms=round(1000 * microphone.worst_error_s, 2), clock_first_error_ms=round(1000 * microphone.first_error_s, 2),
        stale=observer.stale, stale_examples=tuple(observer.stale_examples),
        narrations=observer.narrations, narrations_incomplete=observer.incomplete, narrator_s=dict(observer.narrator_s),
        encodes={} if end is None else end.encodes, stages_ms={} if end is None else end.stages_ms, failure=failure,
    )  # fmt: skip


def _spread(work_ms: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    """p50, p99, max."""
    if not len(work_ms):
        return 0.0, 0.0, 0.0
    p50, p99, longest = (round(float(value), 2) for value in np.percentile(work_ms, (50, 99, 100)))
    return p50, p99, longest


@contextlib.contextmanager
def _progress(console: Console, plan: Plan) -> Generator[Callable[[float], None]]:
    """A bar with the time left, or a line for each tenth where there is no terminal. What is given wants to be told the simulated time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"soak, {plan.hours:g} h, {len(plan.faults)} faults", total=plan.hours * 3600)
        tenths = 0

        def tell(time_s: float) -> None:
            nonlocal tenths
            bar.update(task, completed=time_s)
            if not console.is_terminal and time_s >= (tenths + 1) * plan.hours * 360:
                tenths += 1
                console.print(f"{10 * tenths} %: {duration_words(time_s)} simulated")

        yield tell
