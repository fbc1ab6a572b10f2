"""``vaemotion install-service``: a systemd unit that starts an installation at boot and starts it again whenever it ends.

In: a bundle and its configuration, both read before anything is written. Out: a unit in ``/etc/systemd/system`` (root) or in the user's own
folder, and the commands that come next. A unit that somebody else wrote is left alone.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.config import LiveConfig, read_live_config
from runtime.service import RESTART_ME
from runtime.timeline import write_whole
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.errors import UsageError, UserError

NAME = "vaemotion"
MARK = "# Written by vaemotion install-service; it will be written anew by the same command."
STATE, CACHE = Path(f"/var/lib/{NAME}"), Path(f"/var/cache/{NAME}")
BACKS_OFF = 254  # the first systemd that waits longer and longer between restarts
DEVICES = ("video4linux", "media", "dma_heap", "alsa")  # as /proc/devices calls them
GPU_NODES = ("nvidia[0-9]*", "nvidiactl", "nvhost-*", "nvgpu", "nvmap")

JOURNAL_TEXT = f"""{MARK}
# The installation has a journal of its own, so that it cannot fill the disk: journalctl --namespace={NAME}
[Journal]
SystemMaxUse=100M
RuntimeMaxUse=32M
MaxFileSec=1week
"""


@dataclass(frozen=True)
class Service:
    """What a unit says. ``user`` None: a unit of the calling user's own manager, which can confine less. ``gpu``: whether it needs an NVIDIA GPU;
    ``gstreamer``: whether it may speak to a Jetson's camera daemon, whose socket lies in /tmp."""

    description: str
    command: tuple[str, ...]
    folder: Path
    user: str | None
    groups: tuple[str, ...] = ()
    writable: tuple[Path, ...] = ()
    gpu: bool = False
    gstreamer: bool = False
    systemd_version: int = 0


def install_service(
    bundle: Path, config_file: Path, user: str | None, print_only: bool, etc: Path = Path("/etc")
) -> int:
    """Write the unit, or print it. ``user``: whom the system's manager runs it as; None and not root: a unit of the calling user's own.
    ``etc``: of the system that it is for. Raises UserError for a bundle or a configuration that cannot be used."""
    root, version = os.geteuid() == 0, systemd_version()
    if not print_only and version == 0:
        raise UserError("this machine has no systemd; --print shows the unit, for another one")
    if not print_only and user is not None and not root:
        raise UsageError("--user is for root: run it with sudo, or without --user for a service of your own")
    service = describe(bundle, config_file, _checked_user(user, root), version)
    if print_only:
        print(unit_text(service), end="")
        return 0
    files = {(etc / "systemd/system" if root else _user_units()) / f"{NAME}.service": unit_text(service)}
    if root:
        files[etc / f"systemd/journald@{NAME}.conf"] = JOURNAL_TEXT
    write_units(files)
    manager = "systemctl" if root else "systemctl --user"
    print(
        f"wrote {', '.join(map(str, files))}\nnext:\n  {manager} daemon-reload\n  {manager} enable --now {NAME}"
    )
    if not root:
        print(f"  sudo loginctl enable-linger {pwd.getpwuid(os.getuid()).pw_name}  # to start at boot")
    return 0


def describe(bundle: Path, config_file: Path, user: str | None, version: int) -> Service:
    """The service of a bundle and its configuration."""
    config = read_live_config(config_file)
    program = Path(sys.executable).with_name(NAME)
    if not program.exists():
        raise UserError(f"there is no {program}: install vaemotion into this environment (pip install)")
    bundle, config_file = bundle.absolute(), config_file.absolute()
    existing = {group.gr_name for group in grp.getgrall()}
    return Service(
        f"VAEmotion, {read_manifest(bundle).name}",
        (str(program), "run", str(bundle), "--config", str(config_file)),
        config_file.parent,
        user,
        tuple(name for name in ("video", "audio", "render") if name in existing),
        _writable(config, config_file.parent),
        any(node for pattern in GPU_NODES for node in Path("/dev").glob(pattern)),
        config.camera.device.startswith(("csi:", "gst:")),
        version,
    )


def _writable(config: LiveConfig, folder: Path) -> tuple[Path, ...]:
    """Folders of the timelines: a file that is rotated needs its folder."""
    targets = [sink.removeprefix("jsonl:") for sink in config.out.sinks if sink.startswith("jsonl:")]
    return tuple(sorted({(folder / target).parent for target in targets if target != "-"}))


def unit_text(service: Service) -> str:
    """The unit as a text."""
    boot, wanted_by = "After=sound.target pipewire.service pulseaudio.service", "default.target"
    if service.user is not None:
        boot = "Wants=network-online.target\nAfter=network-online.target sound.target"
        wanted_by = "multi-user.target"
    program, *arguments = service.command
    back_off = "RestartSteps=6\nRestartMaxDelaySec=30\n" if service.systemd_version >= BACKS_OFF else ""
    return f"""{MARK}
[Unit]
Description={_line(service.description)}
{boot}
# Whatever happens, and however often: it is started again.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join([_program(program), *map(_argument, arguments)])}
ExecReload=kill -HUP $MAINPID
WorkingDirectory={_line(str(service.folder))}
Restart=always
RestartSec=1
{back_off}# {RESTART_ME}: the GPU is lost to that process, and only a new one can have it again.
RestartForceExitStatus={RESTART_ME}
# Ended by a signal, as a stop does: no failure.
SuccessExitStatus=130 143
# Fed by progress: moments that pass and, where devices are live, readings.
WatchdogSec=30
# TensorRT builds its engines at the first start; vaemotion engines builds them ahead.
TimeoutStartSec=30min
TimeoutStopSec=20
# A watchdog's end leaves where every thread stood in the log, and nobody's face in a core dump.
Environment=PYTHONFAULTHANDLER=1
LimitCORE=0
MemoryHigh=75%
MemoryMax=90%
LogRateLimitIntervalSec=30
LogRateLimitBurst=300
UMask=0027
NoNewPrivileges=yes
{"" if service.user is None else _confined(service)}
[Install]
WantedBy={wanted_by}
"""


def _confined(service: Service) -> str:
    """What only the system's manager can do."""
    lines = [
        f"LogNamespace={NAME}", f"User={service.user}", f"SupplementaryGroups={' '.join(service.groups)}", "Nice=-5",
        f"StateDirectory={STATE.name}", f"CacheDirectory={CACHE.name}", f"Environment=VAEMOTION_CACHE={CACHE}",
        "ProtectSystem=strict", *(f"ReadWritePaths={_quoted(f'-{path}')}" for path in service.writable),
        "ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectControlGroups=yes", "RestrictSUIDSGID=yes",
        "RestrictNamespaces=yes", "LockPersonality=yes",
    ]  # fmt: skip
    if service.gstreamer:
        lines += ["# no PrivateTmp: a Jetson's camera daemon listens in /tmp"]
    else:
        lines += ["PrivateTmp=yes"]
    if service.gpu:
        lines += ["# no DeviceAllow: the nodes of an NVIDIA GPU differ from driver to driver"]
    else:
        lines += ["DevicePolicy=closed", *(f"DeviceAllow=char-{kind} rw" for kind in DEVICES)]
    return "\n".join(lines) + "\n"


def _program(text: str) -> str:
    """The command itself: systemd takes no quotes and no backslashes in its name."""
    if re.search(r"[\"'\\]", text):
        raise UsageError(f"systemd cannot start {text}: install vaemotion in a folder with a plain name")
    return _quoted(text)


def _argument(text: str) -> str:
    """An argument of a command; $ stands for a variable there."""
    return _quoted(text).replace("$", "$$")


def _quoted(text: str) -> str:
    """A word of a list, quoted as systemd.syntax(7) says: whatever it holds, it stays one word and itself."""
    escaped = _line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _line(text: str) -> str:
    """A whole value, which is not split into words; % is systemd's own sign."""
    if re.search(r"[\x00-\x1f\x7f]", text) or text != text.strip() or text.endswith("\\"):
        raise UsageError(f"{text!r} cannot stand in a systemd unit; give it a plain name")
    return text.replace("%", "%%")


def write_units(files: dict[Path, str]) -> None:
    """Write all of them, or raise UsageError where one of them is somebody else's."""
    for file in files:
        if file.is_symlink() or (file.exists() and not _is_ours(file)):
            raise UsageError(f"{file} was not written by vaemotion; move it away first, or take --print")
    for file, text in files.items():
        write_whole(file, text.encode())


def _is_ours(file: Path) -> bool:
    return file.read_bytes().startswith(MARK.encode())


def _checked_user(user: str | None, root: bool) -> str | None:
    """Who the service runs as; None for a unit of the calling user's own."""
    name = user or (os.environ.get("SUDO_USER") if root else None)
    if name is None:
        if root:
            raise UsageError("name the user that the service runs as: --user NAME")
        return None
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError as error:
        raise UsageError(f"--user: there is no user {name!r}; make one: useradd --system {NAME}") from error


def _user_units() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "systemd" / "user"


def systemd_version() -> int:
    """Of this machine, 0 where there is none."""
    try:
        done = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, check=True, timeout=20
        )
        return int(done.stdout.split()[1])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return 0
