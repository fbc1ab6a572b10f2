"""The wiring of a run: read this file and you know the runtime.

    file, or camera and microphone → feed → intake: frames and sound become tokens, once → reading
        → presenter (of a file as it is; of live devices as the show wants it) → publisher → sinks
        → narrator, beside it → narration → publisher

``runtime.session`` is the loop, ``runtime.perception.ticks`` the intake, ``runtime.file_session`` and
``runtime.live_session`` are the presenters. There is one clock. At ``--pace max`` it is simulated, the
narrator runs within the loop at fixed media times and nothing is dropped: the same file gives the same
readings and narrations. At ``--pace real`` a file runs as live devices do.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import vaemotion
from runtime.clock import Clock, ManualClock, MonotonicClock
from runtime.config import (
    ControlsConfig,
    LiveConfig,
    NarratorConfig,
    OutConfig,
    RecordConfig,
    RuntimeConfig,
    exposed_password,
    read_live_config,
)
from runtime.endpoints import LOOPBACK, authority, parse_endpoint
from runtime.engines.language_model import NO_LLAMA
from runtime.engines.llama import on_gpu
from runtime.file_session import FilePresenter
from runtime.live_session import LiveSession
from runtime.machine.facts import read_memory
from runtime.machine.memory import return_large_blocks
from runtime.machine.stop import Stop, signals
from runtime.machine.threads import thread_budget
from runtime.machine.watchdog import RESTART_ME, is_fatal_gpu_error
from runtime.messages import Start, source_name
from runtime.narration.narrator import InLoopNarrator, NarrationMaker, Narrator, SilentNarrator
from runtime.perception.perception import Perception
from runtime.perception.predictor import DevicePredictor, open_predictor
from runtime.perception.recorder import PRIVACY, FeatureRecorder, PartLimits
from runtime.perception.replay import Replay
from runtime.perception.ticks import WHOLE_SOURCE, Intake, IntakeOptions, Tap, batch_ticks
from runtime.session import Session
from runtime.show.controls import Controls, ControlState
from runtime.sinks.console import open_console
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.osc import OscSink
from runtime.sinks.outbox import Outbox, Sink
from runtime.sinks.profile import ProfileTable
from runtime.sinks.publisher import Publisher
from runtime.sinks.stream import ReaderGone
from runtime.sinks.targets import SinkTarget, parse_sink
from runtime.sinks.web import WebSink
from runtime.sources.camera import Camera
from runtime.sources.config import NONE
from runtime.sources.feed import Feed
from runtime.sources.file import FileFeed, FileSource
from runtime.sources.keep_media import MediaKeeper
from runtime.sources.microphone import Microphone
from runtime.sources.preview import Preview
from runtime.sources.rhythm import SLOWEST_S
from runtime.sources.supervision import FREEZE_S, Device, DeviceThread, LiveFeed, Role
from vaemotion.contract.address import Address
from vaemotion.contract.bundle import MANIFEST_FILE, read_manifest, sha256_of
from vaemotion.contract.errors import UsageError
from vaemotion.contract.plain_text import plain
from vaemotion.contract.settings import Impossible
from vaemotion.contract.terminal import tell

PACES = ("real", "max")
CAMERA_QUEUE = 16  # frames are large
_Section = TypeVar("_Section", OutConfig, NarratorConfig, RuntimeConfig, ControlsConfig)
NamedSink = tuple[str, Callable[[], Sink]]


@dataclass(frozen=True)
class RunOptions:
    """Options of ``vaemotion run`` and ``vaemotion record``. None: as the configuration says."""

    outs: Sequence[str] = ()
    pace: str = "real"
    # Seconds between narrations; 0 disables them.
    narrate_every_s: float | None = None
    engine: str | None = None
    threads: int | None = None
    # [HOST:]PORT that receives a show's controls.
    osc_in: str | None = None
    # New file for features, new folder for media.
    record: Path | None = None
    # Record mean tokens only.
    pooled: bool = False
    keep_media: Path | None = None
    profile: bool = False


def run(
    bundle: Path,
    source: Path | None,
    options: RunOptions = RunOptions(),
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Stream a file, or live devices where ``source`` is None, through a bundle (``vaemotion run``).

    ``options`` override the configuration. Returns the exit code: 0, 128 + the signal that ended the run, or
    ``RESTART_ME`` when the GPU was lost. Raises UserError.
    """
    _check(options, source)
    return_large_blocks()
    read_config = functools.partial(_configure, config_file, overrides, options)
    config, live = read_config(), source is None
    if config_file and live and (warning := exposed_password(config_file, overrides)):
        tell(f"vaemotion: warning: {warning}", stderr=True)
    file = None if source is None else FileSource(source)
    preview = Preview() if config.web.preview and live else None
    sinks = [build_sink(parse_sink(out), config, preview, live) for out in config.out.sinks]
    sinks += [("profile", ProfileTable)] if options.profile else []
    at_full_pace = options.pace == "max"
    side_by_side = not at_full_pace and config.narrator.every_s > 0  # the narrator has a thread of its own
    threads = thread_budget(config.runtime.threads, side_by_side=side_by_side)
    with signals() as stop, contextlib.ExitStack() as closing:
        predictor = closing.enter_context(
            open_predictor(bundle, threads=threads, engine=config.runtime.engine or None)
        )
        clock: Clock = ManualClock() if at_full_pace else MonotonicClock()
        hop_s = predictor.constants.front_end.windows.frame_hop_s
        feed = build_live_feed(config, clock) if file is None else FileFeed(file, clock, hop_s)
        closing.callback(feed.close)
        controls = ControlState(_open_controls(config.controls, closing))
        limits = PartLimits(round(config.record.max_mb * 1e6), config.record.keep) if live else None
        recorder = _open_recorder(options, bundle, predictor, limits, closing)
        perception = Perception(predictor, recorder)
        keeper = _open_keeper(options.keep_media, config.record, closing)
        taps = [*keeper, *((preview,) if preview else ())]
        boxes = open_sinks(sinks, "wait" if at_full_pace else "drop-oldest", stop)
        publisher = Publisher(boxes, status_to_all=live)
        if isinstance(feed, LiveFeed):
            reload = read_config if config_file else None
            presenter = closing.enter_context(LiveSession(config, feed, clock, hop_s, controls, stop, reload))
            intake = IntakeOptions(config.camera.used, config.microphone.device != NONE)
        else:
            presenter = FilePresenter(config.narrator.every_s, controls, clock, config.narrator)
            components = read_manifest(bundle).components
            at_once = batch_ticks(components, read_memory().available_bytes) if at_full_pace else 1
            intake = IntakeOptions(feed.source.has_frames, feed.source.has_sound, batch_ticks=at_once)
        session = build_session(perception, feed, clock, stop, presenter, publisher, intake, taps)
        return _run_to_its_end(
            session, describe(bundle, _public_name(config, source), options.pace, predictor)
        )


def replay_recording(bundle: Path, recording: Path, outs: Sequence[str], threads: int | None) -> int:
    """Publish the readings of a recording of features again (``vaemotion run --replay``).

    They are bit for bit those of its run, before any show changed them. Returns the exit code. Raises
    UserError.
    """
    config = _configure(None, (), RunOptions(outs=outs, threads=threads))
    sinks = [build_sink(parse_sink(out), config) for out in config.out.sinks]
    with (
        signals() as stop,
        open_predictor(bundle, threads=thread_budget(config.runtime.threads)) as predictor,
    ):
        perception = Perception(predictor)
        ticks = Replay(recording, sha256_of(bundle / MANIFEST_FILE), perception, stop)
        presenter = FilePresenter(0.0, ControlState(), ManualClock())
        publisher = Publisher(open_sinks(sinks, "wait", stop))
        session = Session(ticks, presenter, publisher, SilentNarrator(), stop)
        return _run_to_its_end(session, describe(bundle, plain(recording.name), "max", predictor))


def build_sink(
    target: SinkTarget, config: LiveConfig, preview: Preview | None = None, live: bool = False
) -> NamedSink:
    """Return a sink's name and the function that opens it.

    Nothing is opened here, because a run opens its sinks after everything else is known to be right.
    ``preview``: the camera's frames for a page that may show them. ``live``: rotate logs; a file ends before
    a disk is full.
    """
    match target.kind:
        case "console":
            return target.name, open_console
        case "jsonl":
            max_bytes = round(config.log.max_mb * 1e6) or None if live else None
            return target.name, lambda: JsonLines(
                target.file, live=live, max_bytes=max_bytes, keep=config.log.keep
            )
        case "osc":
            return target.name, lambda: OscSink(target.host, target.port)
        case "web":
            file = config.web.token_file
            token = Path(file).read_text().strip() if file else None
            page = f"http://{authority(target.host, target.port)}/{'?token=…' if token else ''}"
            tell(f"page: {page}", stderr=True)
            return target.name, lambda: WebSink(target.host, target.port, token=token, preview=preview)


def open_sinks(
    sinks: Sequence[NamedSink], when_full: Literal["wait", "drop-oldest"], stop: Stop
) -> list[Outbox]:
    """Open every sink behind a queue. When one cannot be opened, the others are closed. Raises UserError."""
    with contextlib.ExitStack() as closing:
        boxes = list[Outbox]()
        for name, make in sinks:
            boxes.append(Outbox(name, make(), when_full, stop))
            closing.callback(boxes[-1].close)
        closing.pop_all()
    return boxes


def build_live_feed(config: LiveConfig, clock: Clock) -> LiveFeed:
    """Return the configured devices, each behind a thread that opens it whenever it is there."""
    devices, microphone = dict[Role, Device](), Microphone(config.microphone, clock)
    if config.camera.used:
        stream, freeze_s = Camera(config.camera, clock).stream, config.camera.freeze_s or FREEZE_S
        address = config.camera.device
        devices["camera"] = DeviceThread("camera", stream, clock, freeze_s, CAMERA_QUEUE, SLOWEST_S, address)
    if config.microphone.device != NONE:
        address = Address(config.microphone.device)
        devices["microphone"] = DeviceThread("microphone", microphone.stream, clock, address=address)
    return LiveFeed(devices, clock, lambda: microphone.drift_ppm)


def build_session(
    perception: Perception,
    feed: Feed,
    clock: Clock,
    stop: Stop,
    presenter: FilePresenter | LiveSession,
    publisher: Publisher,
    options: IntakeOptions = WHOLE_SOURCE,
    taps: Sequence[Tap] = (),
) -> Session:
    """Return a feed's session; its narrator runs within the loop on a simulated clock, else beside it."""
    intake = Intake(perception, feed, clock, stop, presenter, publisher, options, taps)
    return Session(intake, presenter, publisher, _narrator(perception, clock, stop), stop)


def _narrator(perception: Perception, clock: Clock, stop: Stop) -> NarrationMaker:
    predictor = perception.predictor
    if not predictor.language_model.available:
        tell(f"vaemotion: readings without narration: {NO_LLAMA}", stderr=True)
        return SilentNarrator()
    if clock.simulated:
        return InLoopNarrator(predictor, perception.times, stop)
    return Narrator(predictor, perception.times, clock)


def describe(bundle: Path, source: str, pace: str, predictor: DevicePredictor) -> Start:
    """Return the first message of a run. ``source``: its public name."""
    manifest = read_manifest(bundle)
    engines = [getattr(engine, "announcement", role) for role, engine in predictor.engines.items()]
    language_model = manifest.component("language_model")
    device = NO_LLAMA
    if predictor.language_model.available:
        device = f"llama.cpp on the {'GPU' if on_gpu() else 'CPU'}"
    return Start(
        bundle=manifest.name,
        bundle_sha256=sha256_of(bundle / MANIFEST_FILE),
        source=source,
        pace=pace,
        engines=(*engines, f"{language_model.label}: {device}"),
        lineage=manifest.lineage,
        version=vaemotion.__version__,
    )


def _check(options: RunOptions, source: Path | None) -> None:
    """Raise UsageError for options that contradict each other."""
    if options.pace not in PACES:
        raise UsageError(f"--pace must be one of {', '.join(PACES)}, got {options.pace!r}")
    if source is not None and options.keep_media is not None:
        raise UsageError("--keep-media is for live devices; a file is kept already")
    if source is None and options.pace == "max":
        raise UsageError("--pace max is for files; live devices run in real time")


def _configure(file: Path | None, overrides: Sequence[str], options: RunOptions) -> LiveConfig:
    """Return the file's configuration, or the defaults, overridden by the command line. Raises UsageError."""
    if file is None and overrides:
        raise UsageError("--set changes a configuration; name its file with --config")
    config = LiveConfig() if file is None else read_live_config(file, overrides)
    for out in options.outs:
        parse_sink(out)
    if options.outs:
        config = replace(config, out=_with(config.out, "--out", sinks=tuple(options.outs)))
    if options.narrate_every_s is not None:
        narrator = _with(config.narrator, "--narrate-every", every_s=options.narrate_every_s)
        config = replace(config, narrator=narrator)
    if options.engine is not None:
        config = replace(config, runtime=_with(config.runtime, "--engine", engine=options.engine))
    if options.threads is not None:
        config = replace(config, runtime=_with(config.runtime, "--threads", threads=options.threads))
    if options.osc_in is not None:
        parse_endpoint(options.osc_in, "--osc-in", LOOPBACK)
        config = replace(config, controls=_with(config.controls, "--osc-in", osc_in=options.osc_in))
        if config.controls.open_to_all:
            raise UsageError(
                f"--osc-in {options.osc_in} is on a network: name the addresses whose controls are taken as "
                "allow in [controls] of the configuration (--config), or listen on loopback"
            )
    return config


def _with(section: _Section, option: str, **values: object) -> _Section:
    """Return a section with values of the command line. Raises UsageError that names the option."""
    try:
        return replace(section, **values)
    except Impossible as error:
        raise UsageError(f"{option} {next(iter(error.fields.values()))}") from error


def _open_controls(config: ControlsConfig, closing: contextlib.ExitStack) -> Controls | None:
    if not config.osc_in:
        return None
    host, port = parse_endpoint(config.osc_in, "--osc-in", LOOPBACK)
    return closing.enter_context(contextlib.closing(Controls(host, port, config.allow)))


def _open_recorder(
    options: RunOptions,
    bundle: Path,
    predictor: DevicePredictor,
    limits: PartLimits | None,
    closing: contextlib.ExitStack,
) -> FeatureRecorder | None:
    if options.record is None:
        return None
    print(f"vaemotion: {PRIVACY}", file=sys.stderr)
    sha256 = sha256_of(bundle / MANIFEST_FILE)
    recorder = FeatureRecorder(options.record, sha256, predictor.constants, limits, pooled=options.pooled)
    return closing.enter_context(contextlib.closing(recorder))


def _open_keeper(folder: Path | None, bounds: RecordConfig, closing: contextlib.ExitStack) -> Sequence[Tap]:
    if folder is None:
        return ()
    keeper = MediaKeeper(folder, round(bounds.max_mb * 1e6), bounds.keep)
    return (closing.enter_context(contextlib.closing(keeper)),)


def _public_name(config: LiveConfig, source: Path | None) -> str:
    """Return the source as anybody may see it: a file without folders, devices without passwords."""
    if source is not None:
        return plain(source.name)
    camera, microphone = config.camera.device, Address(config.microphone.device)
    names = {"camera": source_name(str(camera)), "microphone": str(microphone)}
    return ", ".join(f"{role} {name}" for role, name in names.items() if name != NONE)


def _run_to_its_end(session: Session, start: Start) -> int:
    """Run a session and return the exit code: 1 where the reader of a pipe went away, as for ``head``."""
    try:
        session.run(start)
    except ReaderGone as gone:
        return gone.exit_code
    except Exception as error:
        if not is_fatal_gpu_error(error):
            raise
        tell(f"vaemotion: GPU lost; restarting is required: {error}", stderr=True)
        return RESTART_ME
    return 128 + session.stop.signal if session.stop.signal else 0
