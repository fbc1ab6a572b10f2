"""The wiring of the runtime: read this file and you know it.

    file, or camera and microphone → feed → session: pictures and sound become tokens once → reading → outboxes → sinks
                                                        └→ narrator, beside it    → narration ┘

``runtime.session`` is the loop. One clock: at ``--pace max`` it is simulated, the narrator runs within the loop at fixed media times and nothing is
ever dropped: the same file gives the same readings and narrations. At ``--pace real`` a file runs as live devices do. Without a file,
``runtime.live`` feeds the loop from devices, and ``runtime.installation`` adds what only a live run has.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from runtime.camera import camera_stream
from runtime.clock import Clock, ManualClock, MonotonicClock
from runtime.config import (
    LOOPBACK,
    NONE,
    ControlsConfig,
    LiveConfig,
    NarratorConfig,
    OutConfig,
    RuntimeConfig,
    read_live_config,
)
from runtime.controls import Controls, Desk
from runtime.installation import Installation
from runtime.keep_media import MediaKeeper
from runtime.live import FREEZE_S, Device, LiveFeed, Role, Supervised
from runtime.llama import on_gpu
from runtime.messages import Start
from runtime.microphone import Microphone
from runtime.moments import moments_at_once
from runtime.predictor import DevicePredictor, open_predictor
from runtime.preview import Preview
from runtime.recording import FeatureRecorder, replay
from runtime.service import RESTART_ME, Watchdog, is_fatal_gpu_error
from runtime.session import Session
from runtime.sinks.console import open_console
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.osc import OscSink, parse_endpoint
from runtime.sinks.outbox import Outbox, Sink
from runtime.sinks.profile import ProfileTable
from runtime.sinks.web import WebSink, parse_web
from runtime.sources import Feed, FileFeed, FileSource
from runtime.stop import signals
from runtime.threads import thread_budget
from runtime.timeline import source_name
from vaemotion.contract.bundle import MANIFEST_FILE, read_manifest, sha256_of
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import Impossible

PACES = ("real", "max")
_Section = TypeVar("_Section", OutConfig, NarratorConfig, RuntimeConfig, ControlsConfig)
CAMERA_MAILBOX = 16  # pictures are large


def run(
    bundle: Path,
    source: Path | None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    outs: Sequence[str] = (),
    pace: str = "real",
    narrate_every_s: float | None = None,
    engine: str | None = None,
    threads: int | None = None,
    osc_in: str | None = None,
    record: Path | None = None,
    keep_media: Path | None = None,
    profile: bool = False,
) -> int:
    """``vaemotion run``: stream a file, or live devices where ``source`` is None, through a bundle. Options given here go before the
    configuration's. Returns the exit code: 0, or 128 + the signal that ended it."""
    if pace not in PACES:
        raise UsageError(f"--pace must be one of {', '.join(PACES)}, got {pace!r}")
    if source is not None and keep_media is not None:
        raise UsageError("--keep-media is for live devices; a file is kept already")
    if source is None and pace == "max":
        raise UsageError("--pace max is for files: live devices have a pace of their own")
    configure = functools.partial(
        _configured, config_file, overrides, outs, narrate_every_s, engine, threads, osc_in
    )
    config = configure()
    file = None if source is None else FileSource(source)
    preview = Preview() if config.web.preview and file is None else None
    sinks = [_parse_out(out, config, preview, live=file is None) for out in config.out.sinks]
    if profile:
        sinks.append(("profile", ProfileTable))
    beside = pace != "max" and config.narrator.every_s > 0  # the narrator has a thread of its own
    with signals() as stop, contextlib.ExitStack() as closing:
        predictor = closing.enter_context(
            open_predictor(
                bundle,
                threads=thread_budget(config.runtime.threads, side_by_side=beside),
                engine=config.runtime.engine or None,
            )
        )
        clock: Clock = ManualClock() if pace == "max" else MonotonicClock()
        feed: Feed = live_feed(config, clock) if file is None else FileFeed(file, clock)
        closing.callback(feed.close)
        controls = None
        if config.controls.osc_in:
            host, port = parse_endpoint(config.controls.osc_in, "--osc-in", LOOPBACK)
            controls = closing.enter_context(contextlib.closing(Controls(host, port)))
        recorder = None
        if record is not None:
            recorder = FeatureRecorder(record, sha256_of(bundle / MANIFEST_FILE), predictor.constants)
            closing.callback(recorder.close)
        keeper = None
        if keep_media is not None:
            keeper = MediaKeeper(keep_media)
            closing.callback(keeper.close)
        installation = None
        if isinstance(feed, LiveFeed):
            hop_s = predictor.constants.front_end.windows.frame_hop_s
            installation = Installation(
                config, feed, clock, hop_s, Watchdog(), configure if config_file else None
            )
        boxes = [
            Outbox(name, make(), "wait" if pace == "max" else "drop-oldest", stop) for name, make in sinks
        ]
        session = Session(
            predictor, feed, clock, boxes, stop, pace, config.narrator.every_s,
            has_frames=config.camera.device != NONE if file is None else file.has_frames,
            has_sound=config.microphone.device != NONE if file is None else file.has_sound,
            desk=Desk(controls), installation=installation, recorder=recorder, preview=preview, keeper=keeper,
            at_once=moments_at_once(pace),
        )  # fmt: skip
        if installation is not None:
            closing.callback(installation.end)
            installation.begin()
        try:
            session.run(describe(bundle, _told(config, source), pace, predictor))
        except Exception as error:
            if not is_fatal_gpu_error(error):
                raise
            print(
                f"vaemotion: the GPU was lost, only a new process can have it again: {error}", file=sys.stderr
            )
            return RESTART_ME
        return 128 + stop.signal if stop.signal else 0


def replay_recording(bundle: Path, recording: Path, outs: Sequence[str], threads: int | None) -> int:
    """``vaemotion run --replay``: the readings of a recording of features, bit for bit those of its run, before any show changed them."""
    config = _configured(None, (), outs, None, None, threads, None)
    sinks = [_parse_out(out, config) for out in config.out.sinks]
    budget = thread_budget(threads or 0)
    with signals() as stop, open_predictor(bundle, threads=budget) as predictor:
        evidence = functools.partial(replay, recording, sha256_of(bundle / MANIFEST_FILE))
        clock = ManualClock()
        boxes = [Outbox(name, make(), "wait", stop) for name, make in sinks]
        session = Session(predictor, LiveFeed({}, clock), clock, boxes, stop, "max", 0.0, recorded=evidence)
        session.run(describe(bundle, recording.name, "max", predictor))
        return 128 + stop.signal if stop.signal else 0


def _configured(
    file: Path | None, overrides: Sequence[str], outs: Sequence[str], narrate_every_s: float | None, engine: str | None, threads: int | None,
    osc_in: str | None,
) -> LiveConfig:  # fmt: skip
    """The file's configuration, or the defaults, with the command line's options in their places."""
    if file is None and overrides:
        raise UsageError("--set changes a configuration; name its file with --config")
    config = LiveConfig() if file is None else read_live_config(file, overrides)
    for out in outs:
        if out.startswith("osc:"):
            parse_endpoint(out.removeprefix("osc:"), "--out osc:")
    if outs:
        config = replace(config, out=_with(config.out, "--out", sinks=tuple(outs)))
    if narrate_every_s is not None:
        config = replace(config, narrator=_with(config.narrator, "--narrate-every", every_s=narrate_every_s))
    if engine is not None:
        config = replace(config, runtime=_with(config.runtime, "--engine", engine=engine))
    if threads is not None:
        config = replace(config, runtime=_with(config.runtime, "--threads", threads=threads))
    if osc_in is not None:
        parse_endpoint(osc_in, "--osc-in", LOOPBACK)
        config = replace(config, controls=_with(config.controls, "--osc-in", osc_in=osc_in))
    return config


def _with(section: _Section, option: str, **values: object) -> _Section:
    """A section with a value from the command line. Raises UsageError that names the option."""
    try:
        return replace(section, **values)
    except Impossible as error:
        raise UsageError(f"{option} {next(iter(error.fields.values()))}") from error


def live_feed(config: LiveConfig, clock: Clock) -> LiveFeed:
    """The configured devices, each behind a thread that opens it whenever it is there."""
    devices, microphone = dict[Role, Device](), Microphone(config.microphone, clock)
    if config.camera.device != NONE:
        pictures = functools.partial(camera_stream, config.camera, clock)
        devices["camera"] = Supervised(
            "camera", pictures, clock, config.camera.freeze_s or FREEZE_S, CAMERA_MAILBOX
        )
    if config.microphone.device != NONE:
        devices["microphone"] = Supervised("microphone", microphone.stream, clock)
    return LiveFeed(devices, clock, lambda: microphone.drift_ppm)


def _told(config: LiveConfig, source: Path | None) -> str:
    """A source as everybody may see it."""
    if source is not None:
        return source.name
    told = {"camera": source_name(config.camera.device), "microphone": config.microphone.device}
    return ", ".join(f"{role} {name}" for role, name in told.items() if name != NONE)


def _parse_out(
    out: str, config: LiveConfig, preview: Preview | None = None, *, live: bool = False
) -> tuple[str, Callable[[], Sink]]:
    """A name and what makes the sink; nothing is opened before everything else is known to be right."""
    kind, _, target = out.partition(":")
    if kind == "console" and not target:
        return out, open_console
    if kind == "jsonl" and target:
        max_bytes = (
            round(config.log.max_mb * 1e6) or None if live else None
        )  # a file ends before a disk is full
        return out, lambda: JsonLines(target, max_bytes, config.log.keep)
    if kind == "osc":
        host, port = parse_endpoint(target, "--out osc:")
        return out, lambda: OscSink(host, port)
    assert kind == "web", out  # the configuration knows no other
    host, port = parse_web(target)
    token = Path(config.web.token_file).read_text().strip() if config.web.token_file else None
    print(f"page: http://{host}:{port}/{'?token=…' if token else ''}", file=sys.stderr)
    return out, lambda: WebSink(host, port, token=token, preview=preview)


def describe(bundle: Path, source: str, pace: str, predictor: DevicePredictor) -> Start:
    """The first message of a run."""
    manifest = read_manifest(bundle)
    engines = [getattr(engine, "announcement", role) for role, engine in predictor.engines.items()]
    language_model = manifest.component("language_model")
    where = "GPU" if on_gpu() else "CPU"
    return Start(
        manifest.name, sha256_of(bundle / MANIFEST_FILE), source, pace,
        (*engines, f"{language_model.label}: llama.cpp on the {where}"), manifest.lineage, version("vaemotion"),
    )  # fmt: skip
