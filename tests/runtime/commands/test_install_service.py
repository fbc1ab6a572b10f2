"""``vaemotion install-service``: systemd itself parses the unit as intended, whatever its paths hold."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.commands.install_service import MARK, Service, describe, install_service, unit_text, write_units
from runtime.machine.watchdog import RESTART_ME
from tests.paths import ROOT
from vaemotion.cli.main import main
from vaemotion.contract.errors import UsageError, UserError

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed: apt-get install systemd",
)


def verified(text: str, folder: Path, *options: str) -> dict[str, list[str]]:
    """Return the settings that systemd parsed, by name; it must report no error and no warning."""
    unit = folder / "vaemotion.service"
    unit.write_text(text)
    command = ["systemd-analyze", *options, "verify", str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    environment["SYSTEMD_LOG_LEVEL"] = "debug"
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    dump = done.stdout.split("-> Unit vaemotion.service:")[1]
    parsed: dict[str, list[str]] = {}
    for line in dump.split("-> Unit ")[0].splitlines():
        name, separator, value = line.strip().partition(": ")
        if separator:
            parsed.setdefault(name, []).append(value)
    return parsed


def words(line: str) -> list[str]:
    """Split a command line as systemd prints it: in a shell's quotes, and with $$ for $."""
    quoted = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', line)
    return [re.sub(r"\\(.)", r"\1", inside or plain).replace("$$", "$") for inside, plain in quoted]


def program(folder: Path) -> str:
    file = folder / "vaemotion"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def place(tmp_path: Path) -> Generator[Path]:
    """Yield a folder that every user can read, which ``tmp_path`` is not."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a bundle that every user can read, and install a program beside it that every user can start."""
    program(place)
    (place / "python").symlink_to("/bin/sh")
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    return Path(shutil.copytree(ROOT / "models" / "vaemotion-tiny-bundle", place / "bundle"))


@pytest.fixture
def user() -> str:
    """Return a user that the service may run as: for a root's test another one."""
    return "daemon" if os.geteuid() == 0 else getpass.getuser()


@pytest.fixture
def config(place: Path) -> Path:
    file = place / "live.toml"
    file.write_text(
        '[out]\nsinks = ["jsonl:log/timeline.jsonl", "jsonl:/var/lib/vaemotion/t.jsonl", "console"]\n'
    )
    return file


@needs_systemd
def test_systemd_parses_the_unit_as_intended(tmp_path: Path) -> None:
    service = Service(
        description='VAEmotion, 100 % "tiny"',
        command=(program(tmp_path), "run", "/bundle"),
        folder=tmp_path,
        user="daemon",
        groups=("video", "audio"),
        writable=(tmp_path / "log",),
    )
    parsed = verified(unit_text(service), tmp_path)
    for name, value in {
        "Description": 'VAEmotion, 100 % "tiny"',
        "Type": "notify",
        "NotifyAccess": "main",
        "Restart": "always",
        "RestartSec": "5s",
        "WatchdogSec": "30s",
        "WorkingDirectory": str(tmp_path),
        "UMask": "0027",
        "LimitCORE": "0",
        "Nice": "-5",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "User": "daemon",
        "SupplementaryGroups": "video audio",
        "ReadWritePaths": f"-{tmp_path}/log",
        "DevicePolicy": "closed",
        "LogNamespace": "vaemotion",
    }.items():
        assert parsed.get(name) == [value], name
    assert {"char-video4linux rw", "char-alsa rw"} <= set(parsed["DeviceAllow"])
    assert any(value.startswith("network-online.target") for value in parsed["After"])
    assert "NoNewPrivileges=yes\n" in unit_text(service)  # which systemd-analyze does not print
    assert str(RESTART_ME) in unit_text(service).split("RestartForceExitStatus=")[1].splitlines()[0]


@needs_systemd
def test_a_users_own_unit_needs_no_root(tmp_path: Path) -> None:
    text = unit_text(Service("VAEmotion", (program(tmp_path), "run"), tmp_path, None))
    assert verified(text, tmp_path, "--user")["Type"] == ["notify"]
    assert "WantedBy=default.target" in text
    for setting in (
        "User=",
        "Nice=",
        "DeviceAllow=",
        "ProtectSystem=",
        "LogNamespace=",
        "SupplementaryGroups=",
    ):
        assert setting not in text


def test_restart_delays_grow_only_with_a_systemd_that_supports_it(tmp_path: Path) -> None:
    for version, expected in ((252, 0), (254, 1), (257, 1)):
        text = unit_text(Service("x", ("/bin/true",), tmp_path, "daemon", systemd_version=version))
        assert text.count("RestartMaxDelaySec=30\n") == text.count("RestartSteps=") == expected


def test_a_gpu_and_a_jetsons_camera_stay_accessible(tmp_path: Path) -> None:
    with_gpu = unit_text(Service("x", ("/bin/true",), tmp_path, "daemon", gpu=True, gstreamer=True))
    assert "DeviceAllow=" not in with_gpu
    assert "DevicePolicy=" not in with_gpu
    assert "PrivateTmp=" not in with_gpu


PARTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/") | st.just(" "),
    min_size=1,
    max_size=25,
).filter(lambda part: part == part.strip() and part not in (".", "..") and not part.endswith("\\"))
AWKWARD = (
    *("a b", "100%h", "%", "$HOME", "${HOME}", "$$", ";", "a;b", '"', "'"),
    *("it's", "a\\b", "\\x41", "é", "#x", "-x", "@x", "+", "*?["),
)


@needs_systemd
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PARTS | st.sampled_from(AWKWARD), min_size=1, max_size=5))
def test_any_path_survives_quoting(parts: list[str], tmp_path: Path) -> None:
    folder = Path("/srv", *parts)
    command = (program(tmp_path), "run", str(folder / "bundle"), "--config", str(folder / "x.toml"), *parts)
    service = Service("x", command, folder, "daemon", (), (folder,))
    parsed = verified(unit_text(service), tmp_path)
    [start] = [line for line in parsed["Command Line"] if "--config" in line]
    assert words(start) == list(command)
    assert parsed["WorkingDirectory"] == [str(folder)]
    assert parsed["ReadWritePaths"] == [f"-{folder}"]


@pytest.mark.parametrize("name", ["two\nlines", "tab\tbed", "bell\a", " before", "after ", "back\\"])
def test_a_name_that_a_unit_cannot_express_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written in a systemd unit"):
        unit_text(Service("x", ("/bin/true", name), tmp_path, None))
    with pytest.raises(UsageError, match="systemd cannot start"):
        unit_text(Service("x", ('/srv/"odd"/vaemotion', "run"), tmp_path, None))


@needs_systemd
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("gstreamer", [True, False])
@pytest.mark.parametrize("home", [True, False])
def test_the_unit_has_few_rights(tmp_path: Path, gpu: bool, gstreamer: bool, home: bool) -> None:
    service = Service(
        description="x",
        command=(program(tmp_path), "run", "/bundle"),
        folder=tmp_path,
        user="daemon",
        groups=("video", "audio", "render"),
        writable=(tmp_path / "log",),
        gpu=gpu,
        gstreamer=gstreamer,
        home=home,
    )
    verified(unit_text(service), tmp_path)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=30"]
    done = subprocess.run([*command, tmp_path / "vaemotion.service"], capture_output=True, text=True)
    exposure = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert exposure, done.stderr
    assert float(exposure[1]) <= 3.0
    assert done.returncode == 0  # as systemd itself judges the threshold


def test_what_fails_all_the_time_ends_as_failed() -> None:
    for version in (252, 257):
        text = unit_text(Service("x", ("/bin/true",), Path("/"), "daemon", systemd_version=version))
        limits = dict(re.findall(r"(?m)^(StartLimit\w+)=(.*)$", text))
        assert limits["StartLimitBurst"] == "60"
        pauses = [float(pause) for pause in re.findall(r"(?m)^Restart(?:MaxDelay)?Sec=(.*)$", text)]
        # A run that fails within two minutes reaches the limit, whatever the pause before the next one.
        assert limits["StartLimitIntervalSec"] == "3h"
        assert 60 * (max(pauses) + 120) <= 3 * 3600


def test_systemctl_shows_why_a_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert main(["run", str(tmp_path / "nowhere")]) == 1
        manager.setblocking(False)
        assert manager.recv(4096).startswith(b"STATUS=no bundle at ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs a service of another user")
@pytest.mark.parametrize(
    "hidden", ["live.toml", "bundle/manifest.json", "bundle/components", "python", "vaemotion", "password"]
)
def test_a_user_who_cannot_read_what_the_service_reads_is_refused(
    installed: Path, config: Path, tmp_path: Path, hidden: str
) -> None:
    place = installed.parent
    (place / "password").write_text("secret")
    shutil.chown(place / "password", "daemon")
    (place / "password").chmod(0o600)
    config.write_text(
        '[camera]\ndevice = "rtsp://admin:${password}@10.0.0.7/1"\npassword_file = "password"\n'
    )
    assert install_service(installed, config, "daemon", False, tmp_path / "before") == 0
    if hidden == "python":
        (place / "python").unlink()
        shutil.copyfile("/bin/sh", place / "python")
    shutil.chown(place / hidden, "root")
    (place / hidden).chmod(0o700)
    what = "start" if hidden in ("python", "vaemotion") else "read"
    with pytest.raises(UsageError, match=rf"the user daemon cannot {what} .*{hidden}.*; change the rights"):
        install_service(installed, config, "daemon", False, tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_root_is_refused(installed: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"the service needs no rights of root; name another user"):
        install_service(installed, config, "root", True)
    if os.geteuid() == 0:
        monkeypatch.setenv("SUDO_USER", "root")
        with pytest.raises(UsageError, match=r"the service needs no rights of root; name another user"):
            install_service(installed, config, None, True)


def test_a_place_in_a_home_is_readable(
    installed: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ProtectHome=yes\n" in unit_text(describe(installed, config, "daemon", 252))
    monkeypatch.setattr("runtime.commands.install_service.HOMES", ("/home", str(config.parent)))
    assert "ProtectHome=read-only\n" in unit_text(describe(installed, config, "daemon", 252))


def test_the_service_is_that_of_the_bundle_and_its_configuration(
    installed: Path, config: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    service = describe(installed, Path(config.name), user, 252)
    assert Path(service.command[0]).is_absolute()
    assert service.command[1:] == ("run", str(installed), "--config", str(config))
    assert set(service.writable) == {Path("/var/lib/vaemotion"), config.parent / "log"}
    assert service.folder == config.parent
    assert "tiny" in service.description
    config.write_text('[camera]\ndevice = "csi:0"\n')
    assert describe(installed, config, None, 252).gstreamer


def test_a_bundle_or_a_configuration_that_is_wrong_installs_nothing(
    installed: Path, config: Path, user: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no bundle at .*manifest\.json not found"):
        install_service(tmp_path / "nowhere", config, user, True)
    with pytest.raises(UsageError, match="no user 'nobody-of-that-name'; create one"):
        install_service(installed, config, "nobody-of-that-name", True)
    config.write_text("[camera]\ndevise = 1\n")
    with pytest.raises(UsageError, match=r"did you mean camera\.device"):
        install_service(installed, config, user, True)


def test_print_prints_the_unit_and_writes_nothing(
    installed: Path,
    config: Path,
    user: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    before = sorted(config.parent.iterdir())
    assert install_service(installed, config, user, True, tmp_path / "etc") == 0
    out = capsys.readouterr().out
    assert out.startswith(MARK)
    assert f"User={user}\n" in out
    assert sorted(config.parent.iterdir()) == before
    assert not (tmp_path / "etc").exists()
    assert not (tmp_path / "home").exists()


@needs_systemd
def test_the_unit_is_installed_and_the_next_commands_are_printed(
    installed: Path,
    config: Path,
    user: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    root = os.geteuid() == 0
    for _ in range(2):  # the second call overwrites its own file
        assert install_service(installed, config, user if root else None, False, tmp_path / "etc") == 0
    out = capsys.readouterr().out
    [unit] = tmp_path.glob("**/vaemotion.service")
    assert str(unit) in out
    assert re.search(r"systemctl( --user)? daemon-reload\n  systemctl( --user)? enable --now vaemotion", out)
    verified(unit.read_text(), unit.parent, *([] if root else ["--user"]))
    if root:
        assert "SystemMaxUse=" in (tmp_path / "etc/systemd/journald@vaemotion.conf").read_text()


def test_a_foreign_unit_is_not_overwritten(tmp_path: Path) -> None:
    foreign, ours = tmp_path / "a.service", tmp_path / "b.service"
    foreign.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(UsageError, match="was not written by vaemotion"):
        write_units({ours: f"{MARK}\n", foreign: f"{MARK}\n"})
    assert foreign.read_text().startswith("[Service]")
    assert not ours.exists()  # all or nothing
    foreign.unlink()
    foreign.symlink_to("/dev/null")  # what `systemctl mask` leaves
    with pytest.raises(UsageError, match="was not written by vaemotion"):
        write_units({foreign: f"{MARK}\n"})
