"""The estimates of ``vaemotion doctor`` from a manifest alone, for machines that are records here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.commands.doctor.doctor import doctor
from runtime.commands.doctor.forecast import Machine, forecast, probe_forecast, this_machine
from runtime.machine.child_process import in_child
from vaemotion.contract.bundle import Manifest, read_manifest

GIB = 2**30
JETSON = Machine(6 * GIB, 8 * GIB, True, "/cache", 20 * GIB, 0)


def resized(bundle: Path, **sizes_bytes: int) -> Manifest:
    """Return the bundle's manifest with other sizes for the files of some roles."""
    manifest = read_manifest(bundle)
    components = [replace(c, bytes=sizes_bytes.get(c.role, c.bytes)) for c in manifest.components]
    return replace(manifest, components=tuple(components))


def test_a_bundle_that_does_not_fit_is_refused_with_the_figures_and_nothing_of_it_is_opened(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    for component in manifest["components"]:
        component["bytes"] = 2**50 if component["role"] == "language_model" else component["bytes"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))  # alone: opening any file would fail
    assert doctor(tmp_path, as_json=True) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["room in memory"]["ok"] is False
    assert f"language model {2**30}" in checks["room in memory"]["value"]  # MiB
    assert checks["room in memory"]["advice"].startswith("use a machine with more memory")
    assert not {"bundle", "front end", "engines", "readings", "language model"} & set(checks)


def test_too_little_free_memory_and_too_little_memory_get_different_advice(small_bundle: Path) -> None:
    manifest = resized(small_bundle, audio_encoder=GIB)
    [room] = [c for c in forecast(manifest, replace(JETSON, tensorrt=False)) if c.name == "room in memory"]
    assert (room.ok, room.advice) == (True, "")
    assert "6144 of 8192 MiB available" in room.value
    for available, total, advice in ((1, 8, "close other programs"), (1, 1, "use a machine")):
        machine = replace(JETSON, available_bytes=available * GIB, total_bytes=total * GIB)
        room = forecast(manifest, machine)[0]
        assert (room.name, room.ok) == ("room in memory", False)
        assert room.advice.startswith(advice)


def test_building_tensorrt_engines_is_estimated_only_with_tensorrt(small_bundle: Path) -> None:
    manifest = resized(small_bundle, vision_encoder=GIB, audio_encoder=GIB)
    names = ("memory to build", "disk to build", "time to build")
    checks = {check.name: check for check in forecast(manifest, JETSON)}
    assert [checks[name].ok for name in names] == [True, True, None]
    assert "estimated" in checks["time to build"].value
    without = {check.name for check in forecast(manifest, replace(JETSON, tensorrt=False))}
    assert not set(names) & without


def test_a_full_disk_is_a_fault_and_engines_that_are_built_already_need_no_room(small_bundle: Path) -> None:
    manifest = resized(small_bundle, vision_encoder=GIB, audio_encoder=GIB)
    full = replace(JETSON, cache_free_bytes=GIB)
    disk = {check.name: check for check in forecast(manifest, full)}["disk to build"]
    assert disk.ok is False
    assert "1024 MiB free at /cache" in disk.value
    assert "VAEMOTION_CACHE" in disk.advice
    built = replace(full, cached_bytes=3 * GIB)
    assert {check.name: check.ok for check in forecast(manifest, built)}["disk to build"] is True


def test_the_cache_is_measured_where_the_engines_go_and_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAEMOTION_CACHE", str(tmp_path / "deep" / "cache"))
    machine = this_machine()
    assert machine.cache_folder == str(tmp_path / "deep" / "cache")
    assert machine.cache_free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert list(tmp_path.iterdir()) == []


# A user without an account, as in a container that is started with a number as its user.
NO_ACCOUNT = """
import pwd
def getpwuid(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""


@pytest.mark.parametrize("home", [None, "", "/dev/null/x", "/proc/no-such-folder"])
def test_a_bundle_is_not_called_broken_where_there_is_no_home_for_a_cache(
    home: str | None, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_ACCOUNT)  # imported by the child process
    for name in ("HOME", "XDG_CACHE_HOME", "VAEMOTION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if home is not None:
        monkeypatch.setenv("HOME", home)
    [room, *_] = json.loads(in_child(probe_forecast, str(small_bundle)))
    assert room["name"] == "room in memory"
    assert room["ok"] is True


def test_without_a_cache_engines_are_built_at_every_start_and_that_is_no_fault(small_bundle: Path) -> None:
    machine = replace(JETSON, cache_folder=None, cache_free_bytes=0)
    disk = {check.name: check for check in forecast(read_manifest(small_bundle), machine)}["disk to build"]
    assert disk.ok is None
    assert "VAEMOTION_CACHE" in disk.advice


@pytest.mark.parametrize("there", ["file", "broken link", "file in the way"])
def test_an_odd_cache_is_no_fault(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    if there == "broken link":
        cache.mkdir()
        (cache / "engine").symlink_to(tmp_path / "gone")
    else:
        cache.write_text("")
    monkeypatch.setenv("VAEMOTION_CACHE", str(cache / "x" if there == "file in the way" else cache))
    machine = this_machine()
    assert machine.cached_bytes == 0
    assert (machine.cache_folder is None) == (there != "broken link")
