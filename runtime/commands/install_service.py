"""``vaemotion install-service``: a systemd unit that starts a live run at boot and restarts it.

In: a bundle and its configuration; both are read before anything is written. Out: a unit in
``/etc/systemd/system`` (root) or in the user's own folder, and the commands to run next. A unit that was not
written by this command is never overwritten.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.config import LiveConfig, exposed_password, read_live_config
from runtime.machine.facts import has_nvidia_gpu
from runtime.machine.watchdog import RESTART_ME
from runtime.sinks.targets import parse_sink
from vaemotion.contract.bundle import MANIFEST_FILE, read_manifest
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.terminal import tell

NAME = "vaemotion"
# The first line of every file that this command may overwrite; earlier versions wrote the same.
MARK = "# Written by vaemotion install-service; it will be written anew by the same command."
STATE, CACHE = Path(f"/var/lib/{NAME}"), Path(f"/var/cache/{NAME}")
BACKS_OFF = 254  # the first systemd with a growing delay between restarts
# Starts within an interval, after which the service is "failed" and not started again.
MOST_STARTS, STARTS_INTERVAL = 60, "3h"
HOMES = ("/home", "/root", "/run/user")  # what ProtectHome hides
DEVICES = ("video4linux", "media", "dma_heap", "alsa")  # as /proc/devices calls them

JOURNAL_TEXT = f"""{MARK}
# A journal of its own with a size limit, so that it cannot fill the disk: journalctl --namespace={NAME}
[Journal]
SystemMaxUse=100M
RuntimeMaxUse=32M
MaxFileSec=1week
"""


@dataclass(frozen=True)
class Service:
    """The contents of a unit file."""

    description: str
    command: tuple[str, ...]
    folder: Path  # working directory
    user: str | None  # None: a unit of the calling user's own manager, which cannot confine as much
    groups: tuple[str, ...] = ()
    writable: tuple[Path, ...] = ()  # folders
    gpu: bool = False  # access to an NVIDIA GPU
    gstreamer: bool = False  # access to a Jetson's camera daemon, whose socket lies in /tmp
    home: bool = False  # the program, the bundle, or a file of the configuration lies in a home
    systemd_version: int = 0


def install_service(
    bundle: Path, config_file: Path, user: str | None, print_only: bool, etc: Path = Path("/etc")
) -> int:
    """Write the unit and print the next commands, or only print the unit. Returns 0.

    ``user``: the user that the system's manager runs it as; None: with root the user of sudo, else a unit of
    the calling user's own. ``etc``: the target system's /etc. Raises UserError for a bundle or a
    configuration that cannot be used, UsageError for a user that does not exist, is root, or cannot read
    what the service reads.
    """
    root, version = os.geteuid() == 0, systemd_version()
    if not print_only and version == 0:
        raise UserError("this machine has no systemd; --print shows the unit for another machine")
    if not print_only and user is not None and not root:
        raise UsageError("--user needs root: use sudo, or omit --user for a service of your own")
    service = describe(bundle, config_file, _checked_user(user, root), version)
    if print_only:
        print(unit_text(service), end="")
        return 0
    _refuse_unreadable(bundle, config_file, service.user)
    if warning := exposed_password(config_file):
        tell(f"vaemotion: warning: {warning}", stderr=True)
    files = {(etc / "systemd/system" if root else _user_units()) / f"{NAME}.service": unit_text(service)}
    if root:
        files[etc / f"systemd/journald@{NAME}.conf"] = JOURNAL_TEXT
    write_units(files)
    manager = "systemctl" if root else "systemctl --user"
    tell(f"wrote {', '.join(map(str, files))}")
    print(f"next:\n  {manager} daemon-reload\n  {manager} enable --now {NAME}")
    if not root:
        print(f"  sudo loginctl enable-linger {pwd.getpwuid(os.getuid()).pw_name}  # to start at boot")
    return 0


def describe(bundle: Path, config_file: Path, user: str | None, version: int) -> Service:
    """Return the service that runs ``bundle`` with ``config_file``; both are read and checked."""
    config = read_live_config(config_file)
    program = Path(sys.executable).with_name(NAME)
    if not program.exists():
        raise UserError(f"{program} does not exist: install vaemotion into this environment with pip")
    bundle, config_file = bundle.absolute(), config_file.absolute()
    writable = _writable(config, config_file.parent)
    used = (sys.executable, program, bundle, config_file, *_secrets(config, config_file), *writable)
    existing = {group.gr_name for group in grp.getgrall()}
    return Service(
        description=f"VAEmotion, {read_manifest(bundle).name}",
        command=(str(program), "run", str(bundle), "--config", str(config_file)),
        folder=config_file.parent,
        user=user,
        groups=tuple(name for name in ("video", "audio", "render") if name in existing),
        writable=writable,
        gpu=has_nvidia_gpu(),
        gstreamer=config.camera.through_gstreamer,
        home=any(Path(os.path.realpath(path)).is_relative_to(home) for path in used for home in HOMES),
        systemd_version=version,
    )


def _writable(config: LiveConfig, folder: Path) -> tuple[Path, ...]:
    """Return the folders of the timelines: rotating a file creates others beside it."""
    files = [target.file for target in map(parse_sink, config.out.sinks) if target.kind == "jsonl"]
    return tuple(sorted({(folder / file).parent for file in files if file != "-"}))


def unit_text(service: Service) -> str:
    """Return the unit file's text. Raises UsageError for a name that systemd cannot express."""
    boot, wanted_by = "After=sound.target pipewire.service pulseaudio.service", "default.target"
    if service.user is not None:
        boot = "Wants=network-online.target\nAfter=network-online.target sound.target"
        wanted_by = "multi-user.target"
    program, *arguments = service.command
    back_off = "RestartSec=5\n"
    if service.systemd_version >= BACKS_OFF:
        back_off = "RestartSec=1\nRestartSteps=6\nRestartMaxDelaySec=30\n"
    return f"""{MARK}
[Unit]
Description={_line(service.description)}
{boot}
# Restart after every failure. What fails all the time ends as "failed": `systemctl status` says why, and
# `systemctl reset-failed` with `systemctl start` begins anew.
StartLimitIntervalSec={STARTS_INTERVAL}
StartLimitBurst={MOST_STARTS}

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join([_program(program), *map(_argument, arguments)])}
ExecReload=kill -HUP $MAINPID
WorkingDirectory={_line(str(service.folder))}
Restart=always
{back_off}# {RESTART_ME}: the GPU was lost; only a new process can use it again.
RestartForceExitStatus={RESTART_ME}
# A stop ends the run with a signal: no failure.
SuccessExitStatus=130 143
# The watchdog is fed by progress: ticks of the run and, where devices are live, readings.
WatchdogSec=30
# TensorRT builds its engines at the first start; `vaemotion engines` builds them ahead.
TimeoutStartSec=30min
TimeoutStopSec=20
# When the watchdog ends the run, the log shows every thread's stack. No core dump: it could hold faces.
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
    """Return the settings that only the system's manager accepts: user, folders, confinement."""
    lines = [
        f"LogNamespace={NAME}",
        f"User={service.user}",
        f"SupplementaryGroups={' '.join(service.groups)}",
        "Nice=-5",
        f"StateDirectory={STATE.name}",
        f"CacheDirectory={CACHE.name}",
        f"Environment=VAEMOTION_CACHE={CACHE}",
        "ProtectSystem=strict",
        f"ProtectHome={'read-only' if service.home else 'yes'}",
        *(f"ReadWritePaths={_quoted(f'-{path}')}" for path in service.writable),
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelLogs=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectProc=invisible",
        "# no ProcSubset: ALSA, the driver of a GPU and the measurement of memory read files in /proc",
        "PrivateMounts=yes",
        "# no PrivateDevices, PrivateUsers and RemoveIPC: cameras and microphones are devices of groups, and",
        "# the user may have programs of its own",
        "RestrictSUIDSGID=yes",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "LockPersonality=yes",
        "CapabilityBoundingSet=",
        "# NETLINK: the names of network peers, and cameras that are plugged in",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "# no IPAddressDeny: cameras, OSC peers and viewers may have any address",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "# what else programs ask for is answered with an error, as on a system without it",
        "SystemCallFilter=~@privileged",
        "SystemCallErrorNumber=EPERM",
        "# no MemoryDenyWriteExecute: GStreamer and the engines of a GPU make machine code as they run",
    ]
    if service.gstreamer:
        lines += ["# no PrivateTmp: a Jetson's camera daemon listens in /tmp"]
    else:
        lines += ["PrivateTmp=yes"]
    if service.gpu:
        lines += ["# no DeviceAllow: the device nodes of an NVIDIA GPU depend on its driver"]
        lines += ["# no ProtectClock: it closes all devices that DeviceAllow does not name"]
    else:
        lines += [
            "ProtectClock=yes",
            "DevicePolicy=closed",
            *(f"DeviceAllow=char-{kind} rw" for kind in DEVICES),
        ]
    return "\n".join(lines) + "\n"


def _program(text: str) -> str:
    """Return the command's name as a unit spells it: systemd accepts no quotes and no backslashes in it."""
    if re.search(r"[\"'\\]", text):
        raise UsageError(
            f"systemd cannot start {text}: install vaemotion in a folder without quotes and backslashes"
        )
    return _quoted(text)


def _argument(text: str) -> str:
    """Return a command's argument as a unit spells it; $ would stand for a variable."""
    return _quoted(text).replace("$", "$$")


def _quoted(text: str) -> str:
    """Return one word of a list, quoted after systemd.syntax(7)."""
    escaped = _line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _line(text: str) -> str:
    """Return a value that is not split into words, with systemd's specifier sign % escaped."""
    if re.search(r"[\x00-\x1f\x7f]", text) or text != text.strip() or text.endswith("\\"):
        raise UsageError(
            f"{text!r} cannot be written in a systemd unit; use a name without line breaks, "
            "control characters, outer spaces and a final backslash"
        )
    return text.replace("%", "%%")


def write_units(files: dict[Path, str]) -> None:
    """Write all files, or none: raises UsageError where one exists that this command did not write."""
    for file in files:
        if file.is_symlink() or (file.exists() and not _is_ours(file)):
            raise UsageError(f"{file} was not written by vaemotion; move it away first, or use --print")
    for file, text in files.items():
        write_whole(file, text)


def _is_ours(file: Path) -> bool:
    return file.read_bytes().startswith(MARK.encode())


def _checked_user(user: str | None, root: bool) -> str | None:
    """Return the user that the service runs as; None for a unit of the calling user's own."""
    name = user or (os.environ.get("SUDO_USER") if root else None)
    if name is None:
        if root:
            raise UsageError("name the user that the service runs as: --user NAME")
        return None
    try:
        found = pwd.getpwnam(name)
    except KeyError as error:
        raise UsageError(f"--user: no user {name!r}; create one: useradd --system {NAME}") from error
    if found.pw_uid == 0:
        raise UsageError(
            f"--user: the service needs no rights of {name}; name another user, or create one: "
            f"useradd --system {NAME}"
        )
    return found.pw_name


def _secrets(config: LiveConfig, config_file: Path) -> list[Path]:
    """Return the files of secrets that a configuration names."""
    names = (config.camera.password_file, config.web.token_file)
    return [config_file.parent / os.path.expanduser(name) for name in names if name]


def _refuse_unreadable(bundle: Path, config_file: Path, user: str | None) -> None:
    """Raise UsageError where the service's user cannot read what it needs; None: the calling user."""
    read = [
        config_file,
        *_secrets(read_live_config(config_file), config_file),
        bundle / MANIFEST_FILE,
        *(bundle / name for component in read_manifest(bundle).components for name in component.files),
    ]
    run = [Path(sys.executable), Path(sys.executable).with_name(NAME)]
    needed = [*((path, os.R_OK | os.X_OK) for path in run), *((path, os.R_OK) for path in read)]
    for (path, mode), fits in zip(needed, _accessible(needed, user), strict=True):
        if not fits:
            what = "start" if mode & os.X_OK else "read"
            whom = f"the user {user}" if user else "this user"
            raise UsageError(
                f"{whom} cannot {what} {path}; change the rights of it and its folders, or put it elsewhere"
            )


def _accessible(paths: Sequence[tuple[Path, int]], user: str | None) -> list[bool]:
    """Return for each path with its mode of ``os.access`` what the system says to a user."""
    if user is None:
        return [os.access(path, mode) for path, mode in paths]
    entry = pwd.getpwnam(user)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(os.getgrouplist(entry.pw_name, entry.pw_gid))
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
            os.write(writing, bytes(os.access(path, mode) for path, mode in paths))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        fits = [bool(byte) for byte in answer.read()]
    os.waitpid(child, 0)
    return fits or [False] * len(paths)


def _user_units() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "systemd" / "user"


def systemd_version() -> int:
    """Return the version of this machine's systemd, 0 where there is none."""
    try:
        done = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, check=True, timeout=20
        )
        return int(done.stdout.split()[1])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return 0
