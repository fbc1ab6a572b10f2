"""The configuration of a run, composed of a section for each part: ``configs/live.toml`` shows every key.

In: a TOML file and ``--set section.key=value``. Out: one frozen ``LiveConfig``, or every problem at once. A
file that is reloaded during a run applies as a whole or not at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtime.endpoints import LOOPBACK, is_endpoint, is_loopback
from runtime.engines.open import PRECISIONS
from runtime.show.show import ShowConfig
from runtime.sinks.targets import GRAMMAR, is_sink, parse_sink
from runtime.sinks.web_server import check_token
from runtime.sources.config import NONE, CameraConfig, MicrophoneConfig
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import Condition, demand, read_settings, within
from vaemotion.contract.speech import Speech

# Texts that may be written as a number.
_NUMBERS_TOO = ("camera.device", "microphone.device", "controls.osc_in")


@dataclass(frozen=True)
class NarratorConfig(Speech):
    """Pace of the narrator, and how it speaks; what is empty or 0 of its speech is as the bundle says."""

    # Seconds between narrations; 0 disables them.
    every_s: float = 2.0

    def conditions(self) -> list[Condition]:
        return [*super().conditions(), *within(self, every_s=(0, 3600))]


@dataclass(frozen=True)
class OutConfig:
    """Sinks of a run, in the grammar of ``runtime.sinks.targets``."""

    sinks: tuple[str, ...] = ("console",)

    def __post_init__(self) -> None:
        wrong = [sink for sink in self.sinks if not is_sink(sink)]
        demand(
            self,
            ("sinks", not wrong, f"a list of {GRAMMAR}"),
            ("sinks", len(set(self.sinks)) == len(self.sinks) > 0, "a list of sinks, each named once"),
        )


@dataclass(frozen=True)
class ControlsConfig:
    """Controls from a show."""

    # PORT or HOST:PORT that receives /control/...; empty: none.
    osc_in: str = ""

    def __post_init__(self) -> None:
        right = not self.osc_in or is_endpoint(self.osc_in, LOOPBACK)
        demand(self, ("osc_in", right, "PORT or HOST:PORT with a port from 1 to 65535"))


@dataclass(frozen=True)
class WebConfig:
    """Access to the web page."""

    # File whose content is the page's password; empty: none.
    token_file: str = ""
    # The page may show the camera.
    preview: bool = False


@dataclass(frozen=True)
class LogConfig:
    """Rotation of each JSON lines file."""

    # Size at which a file is rotated; 0: never.
    max_mb: float = 50.0
    # Rotated files that are kept.
    keep: int = 5

    def __post_init__(self) -> None:
        demand(self, *within(self, max_mb=(0, 100_000), keep=(1, 1000)))


@dataclass(frozen=True)
class RuntimeConfig:
    """Engines, cores and alarms."""

    # Engine of the encoders and the EmoAdapter; empty: the fastest available (``runtime.engines.open``).
    engine: str = ""
    # Cores that engines and narrator share; 0: all (``runtime.machine.threads``).
    threads: int = 0
    # Limits of a reading's latency and of the skew between sound and frames; beyond them the technician is
    # notified.
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
    """The whole configuration, one section for each part."""

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
    """Read a TOML file plus overrides such as ``camera.device=/dev/video2``.

    ``token_file`` is relative to the file's folder. Raises UsageError that names every problem.
    """
    config = read_settings(file, LiveConfig(), overrides, lambda c: _together(c, file.parent), _NUMBERS_TOO)
    return replace(config, web=replace(config.web, token_file=_token_path(config, file.parent)))


def _together(config: LiveConfig, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield problems between keys that are right by themselves: the key, and what is wrong."""
    if config.camera.device == config.microphone.device == NONE:
        yield "camera.device", 'and microphone.device are both "none": there is nothing to perceive'
    if config.web.token_file:
        yield from _token_problems(Path(_token_path(config, folder)))
        return
    for sink in config.out.sinks:
        target = parse_sink(sink)
        if target.kind == "web" and not is_loopback(target.host):
            yield "web.token_file", f"must be given, because {sink!r} can be reached from other machines"


def _token_path(config: LiveConfig, folder: Path) -> str:
    name = config.web.token_file
    return str(folder / os.path.expanduser(name)) if name else ""


def _token_problems(file: Path) -> Iterator[tuple[str, str]]:
    """Yield problems of a token file: one that every user can read, or a token that can be guessed."""
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
