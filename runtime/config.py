"""The configuration of a live installation: ``configs/live.toml`` shows every key.

In: a TOML file and ``--set section.key=value``. Out: one frozen ``LiveConfig``, or every problem at once. A file that is read again while
the installation runs applies as a whole or not at all.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

from runtime.engines import PRECISIONS
from runtime.show import ShowConfig
from runtime.sinks.osc import parse_endpoint
from runtime.sinks.web_server import check_token
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import demand, read_settings, within

NONE = "none"  # a device that is not configured
LOOPBACK = "127.0.0.1"
CAMERAS = 'a path such as "/dev/v4l/by-id/...", an index, "rtsp://...", "http://...", "csi:0", "gst:PIPELINE" or "none"'
SINKS = '"console", "osc:HOST:PORT", "web:PORT", "web:HOST:PORT", "jsonl:FILE" or "jsonl:-"'
_CAMERA = re.compile(r"none|[0-9]{1,3}|/.+|rtsps?://.+|https?://.+|csi:[0-9]{1,2}|gst:.+")
_NUMBERS_TOO = ("camera.device", "microphone.device", "controls.osc_in")  # texts that a number may stand for


@dataclass(frozen=True)
class CameraConfig:
    """``offset_ms``: how long a picture was under way when it is stamped; ``freeze_s``: a camera that gave nothing new for so long is frozen; 0:
    its pictures may stay the same, as those of a captured screen do."""

    device: str = "0"
    width_px: int = 1280
    height_px: int = 720
    frame_rate_hz: float = 30.0
    rotate_degrees: int = 0
    offset_ms: float = 0.0
    freeze_s: float = 0.8

    def __post_init__(self) -> None:
        demand(
            self,
            ("device", _CAMERA.fullmatch(self.device) is not None, CAMERAS),
            ("rotate_degrees", self.rotate_degrees in (0, 90, 180, 270), "0, 90, 180 or 270"),
            *within(
                self, width_px=(16, 7680), height_px=(16, 4320), frame_rate_hz=(1, 240), offset_ms=(-2000, 2000),
                freeze_s=(0.2, 30) if self.freeze_s else (0, 0),
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class MicrophoneConfig:
    """``offset_ms``: as the camera's; ``noise_floor_dbfs``: level of the silent room, above which something sounds."""

    device: str = "default"
    offset_ms: float = 0.0
    noise_floor_dbfs: float = -60.0

    def __post_init__(self) -> None:
        demand(
            self,
            ("device", bool(self.device.strip()), 'a name, a part of one, an index, "default" or "none"'),
            *within(self, offset_ms=(-2000, 2000), noise_floor_dbfs=(-120, 0)),
        )


@dataclass(frozen=True)
class NarratorConfig:
    """``every_s``: one narration in this long, 0: none."""

    every_s: float = 2.0

    def __post_init__(self) -> None:
        demand(self, *within(self, every_s=(0, 3600)))


@dataclass(frozen=True)
class OutConfig:
    sinks: tuple[str, ...] = ("console",)

    def __post_init__(self) -> None:
        wrong = [sink for sink in self.sinks if not _is_sink(sink)]
        demand(
            self,
            ("sinks", not wrong, f"a list of {SINKS}"),
            ("sinks", len(set(self.sinks)) == len(self.sinks) > 0, "a list of sinks, each named once"),
        )


@dataclass(frozen=True)
class ControlsConfig:
    """``osc_in``: PORT or HOST:PORT that takes /control/..., empty: none."""

    osc_in: str = ""

    def __post_init__(self) -> None:
        right = not self.osc_in or _is_endpoint(self.osc_in, LOOPBACK)
        demand(self, ("osc_in", right, "PORT or HOST:PORT with a port from 1 to 65535"))


@dataclass(frozen=True)
class WebConfig:
    """``token_file``: its content is the page's password, empty: none; ``preview``: whether the page may show the camera."""

    token_file: str = ""
    preview: bool = False


@dataclass(frozen=True)
class LogConfig:
    """Of each JSON lines file: ``max_mb`` before it is rotated, 0: never; ``keep``: rotated files that stay."""

    max_mb: float = 50.0
    keep: int = 5

    def __post_init__(self) -> None:
        demand(self, *within(self, max_mb=(0, 100_000), keep=(1, 1000)))


@dataclass(frozen=True)
class RuntimeConfig:
    """``engine``: what runs the encoders and the EmoAdapter, empty: the fastest that is here (``runtime.engines``); ``threads``: cores that engines and
    narrator share, 0: all (``runtime.threads``); a latency or a skew beyond its alarm is told to the technician."""

    engine: str = ""
    threads: int = 0
    latency_alarm_ms: float = 250.0
    skew_alarm_ms: float = 200.0

    def __post_init__(self) -> None:
        demand(
            self,
            ("engine", self.engine in ("", *PRECISIONS), f"{', '.join(PRECISIONS)} or empty"),
            *within(self, threads=(0, 256), latency_alarm_ms=(1, 60_000), skew_alarm_ms=(1, 60_000)),
        )


@dataclass(frozen=True)
class LiveConfig:
    """All of it, one section each."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    microphone: MicrophoneConfig = field(default_factory=MicrophoneConfig)
    narrator: NarratorConfig = field(default_factory=NarratorConfig)
    show: ShowConfig = field(default_factory=ShowConfig)
    out: OutConfig = field(default_factory=OutConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    web: WebConfig = field(default_factory=WebConfig)
    log: LogConfig = field(default_factory=LogConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def read_live_config(file: Path, overrides: Sequence[str] = ()) -> LiveConfig:
    """TOML file plus overrides such as ``camera.device=/dev/video2``; ``token_file`` starts from the file's folder. Raises UsageError that
    names every problem."""
    config = read_settings(file, LiveConfig(), overrides, lambda c: _together(c, file.parent), _NUMBERS_TOO)
    return replace(config, web=replace(config.web, token_file=_token_path(config, file.parent)))


def _together(config: LiveConfig, folder: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with keys that are right by themselves."""
    if config.camera.device == config.microphone.device == NONE:
        yield "camera.device", 'and microphone.device are both "none": there is nothing to perceive'
    if config.web.token_file:
        yield from _token_problems(Path(_token_path(config, folder)))
        return
    for sink in config.out.sinks:
        kind, _, target = sink.partition(":")
        if kind == "web" and not _is_loopback(parse_endpoint(target, "web:", LOOPBACK)[0]):
            yield "web.token_file", f"must be given, because {sink!r} can be reached from other machines"


def _token_path(config: LiveConfig, folder: Path) -> str:
    name = config.web.token_file
    return str(folder / os.path.expanduser(name)) if name else ""


def _token_problems(file: Path) -> Iterator[tuple[str, str]]:
    """A token that everybody on the machine can read protects nothing, nor does one that can be guessed."""
    try:
        found, token = file.stat(), file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        yield "web.token_file", f"must be a text file that this user can read, got {str(file)!r}"
        return
    if found.st_mode & stat.S_IROTH:
        yield "web.token_file", f"{str(file)!r} can be read by everybody; run: chmod o-r {file}"
    try:
        check_token(LOOPBACK, token)
    except UsageError as error:
        yield "web.token_file", f"{str(file)!r} cannot be used: {str(error).removeprefix('--out web: ')}"


def _is_sink(sink: str) -> bool:
    kind, _, target = sink.partition(":")
    match kind:
        case "console":
            return sink == kind
        case "jsonl":
            return bool(target)
        case "osc":
            return _is_endpoint(target, "")
        case "web":
            return _is_endpoint(target, LOOPBACK)
        case _:
            return False


def _is_endpoint(text: str, default_host: str) -> bool:
    try:
        parse_endpoint(text, "", default_host)
    except UsageError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
