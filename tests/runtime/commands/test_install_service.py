"""``vaemotion install-service``: systemd itself parses the unit as intended, whatever its paths hold."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.commands.install_service import MARK, Service, describe, install_service, unit_text, write_units
from runtime.machine.watchdog import RESTART_ME
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
def config(tmp_path: Path) -> Path:
    file = tmp_path / "live.toml"
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
        "RestartSec": "1s",
        "WatchdogSec": "30s",
        "WorkingDirectory": str(tmp_path),
        "UMask": "0027",
        "LimitCORE": "0",
        "Nice": "-5",
        "ProtectSystem": "strict",
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


def test_the_service_is_that_of_the_bundle_and_its_configuration(
    small_bundle: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    service = describe(small_bundle, Path(config.name), getpass.getuser(), 252)
    assert Path(service.command[0]).is_absolute()
    assert service.command[1:] == ("run", str(small_bundle), "--config", str(config))
    assert set(service.writable) == {Path("/var/lib/vaemotion"), config.parent / "log"}
    assert service.folder == config.parent
    assert "small" in service.description
    config.write_text('[camera]\ndevice = "csi:0"\n')
    assert describe(small_bundle, config, None, 252).gstreamer


def test_a_bundle_or_a_configuration_that_is_wrong_installs_nothing(
    small_bundle: Path, config: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no bundle at .*manifest\.json not found"):
        install_service(tmp_path / "nowhere", config, getpass.getuser(), True)
    with pytest.raises(UsageError, match="no user 'nobody-of-that-name'; create one"):
        install_service(small_bundle, config, "nobody-of-that-name", True)
    config.write_text("[camera]\ndevise = 1\n")
    with pytest.raises(UsageError, match=r"did you mean camera\.device"):
        install_service(small_bundle, config, getpass.getuser(), True)


def test_print_prints_the_unit_and_writes_nothing(
    small_bundle: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    assert install_service(small_bundle, config, getpass.getuser(), True, tmp_path / "etc") == 0
    out = capsys.readouterr().out
    assert out.startswith(MARK)
    assert f"User={getpass.getuser()}\n" in out
    assert os.listdir(tmp_path) == ["live.toml"]


@needs_systemd
def test_the_unit_is_installed_and_the_next_commands_are_printed(
    small_bundle: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    root = os.geteuid() == 0
    user = getpass.getuser() if root else None
    for _ in range(2):  # the second call overwrites its own file
        assert install_service(small_bundle, config, user, False, tmp_path / "etc") == 0
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
