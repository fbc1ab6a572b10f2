"""``vaemotion soak``: run simulated days of a live run in minutes, with seeded faults of its devices.

In: a bundle, recordings or none, simulated hours, a seed. Out: soak.json, soak.md and soak.png, a summary,
and an exit code. The encoders, the EmoAdapter, the language model, the session, the show, the governor, the
outboxes and the OSC controls are the real ones. The clock, the devices, the temperature and the slow sink are
simulated. docs/soak.md says more.
"""

from __future__ import annotations

import contextlib
import datetime
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.commands.soak.devices import SimulatedCamera, SimulatedMicrophone, record_devices
from runtime.commands.soak.faults import Fault, schedule
from runtime.commands.soak.film import Recording, make_recording, read_recording
from runtime.commands.soak.observer import Observer
from runtime.commands.soak.plot import plot_soak
from runtime.commands.soak.records import Setup, Soak
from runtime.commands.soak.report import markdown, problems, sentences, soak_json
from runtime.commands.soak.world import SlowSink, World
from runtime.config import LiveConfig, NarratorConfig
from runtime.endpoints import LOOPBACK
from runtime.live_session import LiveSession, Venue
from runtime.machine.facts import machine_name
from runtime.machine.stop import Stop, signals
from runtime.machine.threads import thread_budget
from runtime.perception.perception import Perception
from runtime.perception.predictor import DevicePredictor, open_predictor
from runtime.perception.ticks import IntakeOptions
from runtime.run import build_session, describe
from runtime.show.controls import Controls, ControlState
from runtime.sinks.outbox import Outbox
from runtime.sinks.publisher import Publisher
from runtime.sources.supervision import LiveFeed
from vaemotion.contract.bundle import MANIFEST_FILE, read_manifest, sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.terminal import Terminal
from vaemotion.contract.windows import WindowConfig
from vaemotion.contract.words import duration_words

# Between two ticks, on the nearest point of the bundle's grid: a day with ten readings a second would take
# hours.
TICK_S = 0.5
# Between two narrations: one costs as much as ten readings, and runs within the loop.
NARRATE_EVERY_S = 60.0
LAST_MESSAGES_S = 60.0  # time limit for the last messages to reach the report
DAY = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)  # fixed: opening hours depend on the date


@dataclass(frozen=True)
class SoakOptions:
    """The options of a soak."""

    hours: float  # simulated
    speed: str = "max"  # or "real", or simulated seconds per second
    faults: int | None = None  # None: ``faults.FAULTS_PER_HOUR``
    seed: int = 0
    media: Sequence[Path] = ()  # files that the devices deliver; none: a generated film
    narrate_every_s: float = NARRATE_EVERY_S


def soak(bundle: Path, options: SoakOptions, out: Path | None) -> int:
    """Run a soak, print its summary, and write the report into ``out``.

    Returns 0 where it passed, 1 where not, 128 + the signal that interrupted it. Raises UsageError for
    options that cannot be met, MediaError for files without frames or sound.
    """
    factor = _factor(options.speed)
    if not 0 < options.hours <= 24 * 366:
        raise UsageError(f"--hours must be more than 0 and at most a year, got {options.hours:g}")
    faults = schedule(options.hours * 3600, options.faults, options.seed)
    budget = thread_budget(0)
    with signals() as stop, open_predictor(bundle, threads=budget) as predictor:
        side_px = predictor.constants.front_end.image.side_px
        media = options.media
        recording = read_recording(media, side_px) if media else make_recording(side_px, options.seed)
        plan = SoakPlan(
            bundle=bundle,
            media=", ".join(file.name for file in media) or "built-in film",
            hours=options.hours,
            speed=options.speed,
            factor=factor,
            faults=faults,
            seed=options.seed,
            threads=budget.engines,
            narrate_every_s=options.narrate_every_s,
        )
        found = rehearse(plan, predictor, recording, stop, Terminal(stderr=True))
    failed = problems(found)
    console = Terminal()
    for line in sentences(found):
        console.print(f"• {line}")
    if out is not None:
        console.print(f"written: {', '.join(map(str, write_soak(found, out)))}")
    console.print("\n".join(f"FAILED: {line}" for line in failed) or "passed")
    return 128 + stop.signal if stop.signal else int(bool(failed))


def write_soak(found: Soak, out: Path) -> list[Path]:
    """Write the report and return its files; soak.png only where matplotlib, an extra, is installed."""
    files = [out / "soak.json", out / "soak.md"]
    write_whole(files[0], soak_json(found))
    write_whole(files[1], markdown(found))
    with contextlib.suppress(UserError):
        plot_soak(found, out / "soak.png")
        files.append(out / "soak.png")
    return files


def _factor(speed: str) -> float | None:
    """Return simulated seconds per second; None for "max"."""
    if speed in ("max", "real"):
        return None if speed == "max" else 1.0
    with contextlib.suppress(ValueError):
        if 0 < (factor := float(speed)) < 1e6:
            return factor
    raise UsageError(f"--speed must be max, real, or simulated seconds per second such as 10, got {speed!r}")


@dataclass(frozen=True)
class SoakPlan:
    """The options of a soak, checked and completed."""

    bundle: Path
    media: str  # names of the files that the devices deliver, or "built-in film"
    hours: float  # simulated
    speed: str
    factor: float | None  # simulated seconds per second, None: as fast as possible
    faults: list[Fault]
    seed: int
    threads: int  # of the engines
    narrate_every_s: float  # 0: never


def schedule_of(windows: WindowConfig) -> WindowConfig:
    """Return a soak's schedule: a frame and an audio window each ``TICK_S``, on the bundle's grid."""
    tick_s = windows.frame_hop_s * max(1, round(TICK_S / windows.frame_hop_s))
    return replace(windows, frame_hop_s=tick_s, frame_spacing_s=tick_s, audio_stride_s=tick_s)


def rehearse(
    plan: SoakPlan, predictor: DevicePredictor, recording: Recording, stop: Stop, console: Terminal
) -> Soak:
    """Run a soak, wired as ``runtime.run`` wires a live run, and return its record, also of a failed run."""
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
        progress = closing.enter_context(_progress(console, plan))
        observer = Observer(truths, plan.faults, duration_s, grid.frame_hop_s, progress)
        feed = LiveFeed({"camera": camera, "microphone": microphone}, world, lambda: microphone.drift_ppm)
        config = LiveConfig(narrator=NarratorConfig(every_s=plan.narrate_every_s))
        venue = Venue(
            local_time=lambda: DAY + datetime.timedelta(seconds=world.now_s()), headroom_c=world.headroom_c
        )
        presenter = LiveSession(
            config, feed, world, windows.frame_hop_s, ControlState(controls), stop, venue=venue
        )
        slow = SlowSink(world.sink_open)
        boxes = [
            Outbox("the report", observer, "wait", stop),
            Outbox("the slow sink", slow, "drop-oldest", stop),
        ]
        publisher = Publisher(boxes, status_to_all=True)
        options = IntakeOptions(schedule=grid)
        session = build_session(Perception(predictor), feed, world, stop, presenter, publisher, options)
        try:
            session.run(describe(plan.bundle, plan.media, "max", predictor))
        except Exception as error:  # it is part of the report
            console.print(traceback.format_exc())
            failure = f"{type(error).__name__}: {error}"
        observer.closed.wait(LAST_MESSAGES_S)
    return _record(plan, world, observer, (camera, microphone), windows.frame_hop_s, failure)


def _record(
    plan: SoakPlan,
    world: World,
    observer: Observer,
    devices: tuple[SimulatedCamera, SimulatedMicrophone],
    live_hop_s: float,
    failure: str | None,
) -> Soak:
    """Return the record of a soak. ``live_hop_s``: between two ticks of a live run."""
    return Soak(
        setup=_setup(plan),
        run=world.run(failure),
        perceived=observer.perceived(),
        show=observer.show_states(),
        narrated=observer.narrated(),
        growth=observer.memory_growth(world.now_s() / 3600),
        ticks=world.tick_times(1000 * live_hop_s, observer.narrated_s),
        simulated=record_devices(*devices, observer.back_s),
        totals=observer.totals(),
    )


def _setup(plan: SoakPlan) -> Setup:
    """Return the record of the bundle, the machine and the options."""
    return Setup(
        bundle=read_manifest(plan.bundle).name,
        bundle_sha256=sha256_of(plan.bundle / MANIFEST_FILE),
        media=plan.media,
        machine=machine_name(),
        threads=plan.threads,
        seed=plan.seed,
        speed=plan.speed,
        asked_hours=plan.hours,
        faults=tuple(plan.faults),
    )


@contextlib.contextmanager
def _progress(console: Terminal, plan: SoakPlan) -> Generator[Callable[[float], None]]:
    """Show a bar with the time left, or print a line per tenth where there is no terminal.

    Yields the function to call with the simulated time.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"soak, {plan.hours:g} h, {len(plan.faults)} faults", total=plan.hours * 3600)
        tenths = 0

        def show(time_s: float) -> None:
            nonlocal tenths
            bar.update(task, completed=time_s)
            if not console.is_terminal and time_s >= (tenths + 1) * plan.hours * 360:
                tenths += 1
                console.print(f"{10 * tenths} %: {duration_words(time_s)} simulated")

        yield show
