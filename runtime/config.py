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

from runtime.endpoints import LOOPBACK, is_endpoint, is_loopback, parse_endpoint, parse_networks
from runtime.engines.open import PRECISIONS
from runtime.show.show import ShowConfig
from runtime.sinks.targets import GRAMMAR, is_sink, parse_sink
from runtime.sinks.web_server import check_token
from runtime.sources.config import NONE, CameraConfig, MicrophoneConfig, with_secrets, without_places
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import Condition, Impossible, SettingsError, demand, read_settings, within
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
    # Addresses and networks whose controls are taken; empty: everybody's, which only loopback may have.
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        right = not self.osc_in or is_endpoint(self.osc_in, LOOPBACK)
        demand(
            self,
            ("osc_in", right, "PORT or HOST:PORT with a port from 1 to 65535"),
            ("allow", _are_networks(self.allow), "a list of addresses or networks such as 192.168.1.30"),
        )

    @property
    def open_to_all(self) -> bool:
        """True where a network can reach the port, and nobody is named whose controls are taken."""
        if not self.osc_in or self.allow:
            return False
        return not is_loopback(parse_endpoint(self.osc_in, "osc_in", LOOPBACK)[0])


def _are_networks(texts: tuple[str, ...]) -> bool:
    try:
        parse_networks(texts)
    except ValueError:
        return False
    return True


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
class RecordConfig:
    """Bounds of each file of ``vaemotion record`` of live devices, and of ``--keep-media``."""

    # Size at which the recording begins a new part.
    max_mb: float = 1000.0
    # Older parts that are kept.
    keep: int = 4

    def __post_init__(self) -> None:
        demand(self, *within(self, max_mb=(10, 1_000_000), keep=(1, 1000)))


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
    record: RecordConfig = field(default_factory=RecordConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def read_live_config(file: Path, overrides: Sequence[str] = ()) -> LiveConfig:
    """Read a TOML file plus overrides such as ``camera.device=/dev/video2``.

    ``token_file`` and ``password_file`` are relative to the file's folder; the camera's address is completed
    (``runtime.sources.config.with_secrets``). Raises UsageError that names every problem.
    """
    config = _read(file, overrides)
    web = replace(config.web, token_file=_beside(file.parent, config.web.token_file))
    try:
        return replace(config, web=web, camera=_complete_camera(config, file.parent))
    except Impossible as error:  # the password's file was replaced just now
        raise SettingsError([f"{file}: camera.{error}"]) from error


def exposed_password(file: Path, overrides: Sequence[str] = ()) -> str | None:
    """Return a warning where a configuration holds a camera's password and other users may read it."""
    device = without_places(_read(file, overrides).camera.device)
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & 0o077 or not device.holds_password():
        return None
    return (
        f"{file} holds the camera's password, and other users may read it (mode {mode:03o}); "
        f"run: chmod 600 {file}, or name a file that holds it: password_file"
    )


def _read(file: Path, overrides: Sequence[str]) -> LiveConfig:
    return read_settings(file, LiveConfig(), overrides, lambda c: _together(c, file.parent), _NUMBERS_TOO)


def _together(config: LiveConfig, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield problems between keys that are right by themselves: the key, and what is wrong."""
    if not config.camera.used and config.microphone.device == NONE:
        yield "camera.device", 'and microphone.device are both "none": there is nothing to perceive'
    try:
        _complete_camera(config, folder)
    except Impossible as error:
        for name, what in error.fields.items():
            yield f"camera.{name}", what
    if config.controls.open_to_all:
        yield "controls.allow", f"must name who may control, because {config.controls.osc_in} is on a network"
    if config.web.token_file:
        yield from _token_problems(Path(_beside(folder, config.web.token_file)))
        return
    for sink in config.out.sinks:
        target = parse_sink(sink)
        if target.kind == "web" and not is_loopback(target.host):
            yield "web.token_file", f"must be given, because {sink!r} can be reached from other machines"


def _complete_camera(config: LiveConfig, folder: Path) -> CameraConfig:
    """Return the camera with the secrets in its address. Raises Impossible."""
    password, file = None, _beside(folder, config.camera.password_file)
    if file:
        try:
            password = _read_secret(Path(file)).partition("\n")[0]
        except ValueError as error:
            raise Impossible({"password_file": str(error)}) from error
        if not password:
            raise Impossible({"password_file": f"{file!r} is empty"})
    return with_secrets(config.camera, password, os.environ)


def _beside(folder: Path, name: str) -> str:
    """Return a file's path, which is relative to the configuration's folder; "" for no name."""
    return str(folder / os.path.expanduser(name)) if name else ""


def _read_secret(file: Path) -> str:
    """Return a secret. Raises ValueError, as a predicate, for a file that every user can read."""
    try:
        found, secret = file.stat(), file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise ValueError(f"must be a text file that this user can read, got {str(file)!r}") from None
    if found.st_mode & stat.S_IROTH:
        raise ValueError(f"{str(file)!r} can be read by everybody; run: chmod o-r {file}")
    return secret


def _token_problems(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the problem of a token file: one that every user can read, or a token that can be guessed."""
    try:
        check_token(LOOPBACK, _read_secret(file))
    except ValueError as error:
        yield "web.token_file", str(error)
    except UsageError as error:
        yield "web.token_file", f"{str(file)!r} cannot be used: {str(error).removeprefix('--out web: ')}"
