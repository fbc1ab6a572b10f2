"""Files and folders are whole under their name, whoever is killed, races or finds the disk full."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.paths import ROOT
from vaemotion.contract.files import (
    ABANDONED_S,
    WriteError,
    append_whole,
    publish_folder,
    whole_file,
    whole_folder,
    write_stream,
    write_whole,
)

SIZE = 4_000_000
# Writes its letter to the same file until it is killed.
WRITER = """
import sys; from pathlib import Path
from vaemotion.contract.files import write_whole
file, letter = Path(sys.argv[1]), sys.argv[2].encode()
print("ready", flush=True)
while True: write_whole(file, letter * 4_000_000)
"""


def writer(file: Path, letter: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(file), letter]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert started.stdout is not None
    started.stdout.readline()
    return started


@contextmanager
def full_at(limit_bytes: int) -> Generator[None]:
    """No file may grow beyond this, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- whole or nothing -----------------------------------------------------------------------------------


def test_bytes_and_text_are_written_and_missing_folders_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "bytes", b"\x00\xff")
    write_whole(tmp_path / "a" / "text", "für\n")
    assert (tmp_path / "a" / "b" / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a" / "text").read_bytes() == b"f\xc3\xbcr\n"
    assert names(tmp_path / "a") == ["b", "text"]


def test_an_earlier_file_is_replaced_and_keeps_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "file", "first")
    write_whole(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "second"
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "file")}
    assert len(modes) == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.01, 0.03])
def test_a_killed_writer_leaves_the_old_content_or_the_new(tmp_path: Path, delay_s: float) -> None:
    file = tmp_path / "file"
    write_whole(file, b"old")
    killed = writer(file, "x")
    time.sleep(delay_s)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert file.read_bytes() in (b"old", b"x" * SIZE)


def test_two_processes_that_write_one_name_never_mix(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, b"a" * SIZE)
    both = [writer(file, "a"), writer(file, "b")]
    seen: set[bytes] = set()
    end_s = time.monotonic() + 120
    while len(seen) < 2 and time.monotonic() < end_s:
        content = file.read_bytes()
        assert len(content) == SIZE
        assert content == content[:1] * SIZE
        seen.add(content[:1])
    for process in both:
        assert process.poll() is None, process.communicate()
        process.terminate()
        process.communicate()
    assert seen == {b"a", b"b"}


def test_threads_of_one_process_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    file, failed = tmp_path / "file", []

    def write(letter: bytes) -> None:
        try:
            for _ in range(20):
                write_whole(file, letter * 100_000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert file.read_bytes() in (b"a" * 100_000, b"b" * 100_000, b"c" * 100_000)
    assert names(tmp_path) == ["file"]


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ß" * 127):
        write_whole(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"


def test_file_and_folder_are_synced_and_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def counted_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        size = os.fstat(descriptor).st_size
        done.append(f"{kind} {size}" if kind == "file" else kind)
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", counted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_whole(tmp_path / "file", b"12345")
    assert done == ["file 5", "replace", "folder"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced_is_an_error_only_where_the_disk_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refused(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    if number == errno.EINVAL:  # some network file systems know no such thing
        write_whole(tmp_path / "file", "whole")
    else:
        with pytest.raises(WriteError, match="Input/output error"):
            write_whole(tmp_path / "file", "whole")
    assert names(tmp_path) == ["file"]


# -- what cannot be written -----------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_says_so_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, b"old")
    with full_at(1000), pytest.raises(WriteError) as caught:
        write_whole(file, b"x" * 10_000)
    assert str(caught.value) == (f"cannot write {file}: File too large; make room or choose another place")
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(file)
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no mount in this container")
    try:
        write_whole(disk / "file", b"old")
        message = rf"cannot write {disk}/file: No space left on device; make room or choose another place"
        with pytest.raises(WriteError, match=message):
            write_whole(disk / "file", b"x" * 100_000)
        assert (disk / "file").read_bytes() == b"old"
        assert names(disk) == ["file"]
        with pytest.raises(WriteError, match="make room"), whole_file(disk / "array") as temporary:
            np.zeros(100_000).tofile(temporary)  # NumPy's error has no number and names no file
        assert names(disk) == ["file"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "plain").write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*/taken: Is a directory; choose another place"):
        write_whole(tmp_path / "taken", b"never")
    with pytest.raises(
        WriteError, match=r"cannot write .*/plain/file: Not a directory; choose another place"
    ):
        write_whole(tmp_path / "plain" / "file", b"never")
    with pytest.raises(WriteError, match=r"cannot write .*/plain/a/file: Not a directory"):
        write_whole(tmp_path / "plain" / "a" / "file", b"never")
    with pytest.raises(WriteError, match=r"cannot write /proc/none/file: No such file or directory"):
        write_whole(Path("/proc/none/file"), b"never")
    assert names(tmp_path) == ["plain", "taken"]


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # root may write everywhere
        os.seteuid(65534)
    try:
        with pytest.raises(
            WriteError, match=r"cannot write .*/file: Permission denied; choose another place"
        ):
            write_whole(tmp_path / "file", b"never")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


def fail_with(error: BaseException, file: Path) -> None:
    with whole_file(file) as temporary:
        temporary.write_text("half")
        raise error


def test_an_error_of_the_body_removes_the_temporary_file_and_passes_through(tmp_path: Path) -> None:
    about_the_input = FileNotFoundError(errno.ENOENT, "missing", str(tmp_path / "input"))
    for error in (KeyError("mine"), KeyboardInterrupt(), about_the_input):
        with pytest.raises(type(error)) as caught:
            fail_with(error, tmp_path / "file")
        assert caught.value is error
    assert names(tmp_path) == []


def test_the_error_can_cross_a_process(tmp_path: Path) -> None:
    error = WriteError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/file")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, WriteError)
    assert str(again) == str(error)


# -- temporary files ------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed_when_it_is_old_enough(tmp_path: Path) -> None:
    old, young, folder = (f".file.{number}.00000000.tmp" for number in (7, 8, 9))
    others = [".file.my.tmp", ".file.tmp", ".file.txt", ".other.7.00000000.tmp"]
    for name in (old, young, *others):
        (tmp_path / name).write_text("half")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "half").write_text("half")
    old_s = time.time() - ABANDONED_S - 10
    for name in (old, folder, *others):
        os.utime(tmp_path / name, (old_s, old_s))
    write_whole(tmp_path / "file", "whole")
    assert names(tmp_path) == sorted([young, *others, "file"])


def test_a_library_may_replace_the_temporary_file(tmp_path: Path) -> None:
    """As safetensors does: it writes beside it and renames."""
    with whole_file(tmp_path / "file") as temporary:
        (tmp_path / "library").write_text("whole")
        os.replace(tmp_path / "library", temporary)
    assert (tmp_path / "file").read_text() == "whole"
    assert names(tmp_path) == ["file"]


# -- folders --------------------------------------------------------------------------------------------


def made(folder: Path, content: str) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(content)
    return folder


def test_publishing_replaces_what_stood_there_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for content in ("first", "second"):
        publish_folder(made(tmp_path / "temporary", content), final)
        assert names(tmp_path) == ["final"]
        assert (final / "inner" / "file").read_text() == content


def test_every_file_of_a_published_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    publish_folder(made(tmp_path / "temporary", "x"), tmp_path / "final")
    assert sorted(synced[:-1]) == ["file", "inner", "temporary"]
    assert synced[-1] == tmp_path.name


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for a file system that cannot exchange two folders."""
    monkeypatch.setattr("vaemotion.contract.files._exchange", lambda *_: False)


@pytest.mark.usefixtures("no_exchange")
def test_a_folder_that_cannot_be_moved_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = made(tmp_path / "final", "first")
    temporary = made(tmp_path / "temporary", "second")
    replace = os.replace

    def refused(source: Path, target: Path) -> None:
        if source == temporary:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError):
        publish_folder(temporary, final)
    assert (final / "inner" / "file").read_text() == "first"
    assert names(tmp_path) == ["final", "temporary"]


@pytest.mark.usefixtures("no_exchange")
def test_a_folder_is_replaced_where_two_cannot_be_exchanged(tmp_path: Path) -> None:
    for content in ("first", "second"):
        publish_folder(made(tmp_path / "temporary", content), tmp_path / "final")
        assert (tmp_path / "final" / "inner" / "file").read_text() == content
        assert names(tmp_path) == ["final"]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from vaemotion.contract import files

folder, exchanges = Path(sys.argv[1]), sys.argv[2] == "True"
if not exchanges:
    files._exchange = lambda *_: False
calls = at = 0
def kill(event, arguments):
    # Each change and each opening of a file is a moment at which the kill comes.
    global calls
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "ctypes.dlsym"):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
code = signal.SIGKILL
while code:
    at += 1
    trial = folder / f"trial{at}"
    shutil.copytree(folder / "before", trial)
    child = os.fork()
    if not child:
        sys.addaudithook(kill)
        files.publish_folder(trial / "new", trial / "final", {"file", "inner/file"})
        os._exit(0)
    code = os.waitpid(child, 0)[1]
    assert code in (0, signal.SIGKILL), code
"""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_leaves_the_earlier_or_the_new_folder_whole_and_what_is_not_ours(
    tmp_path: Path, exchanges: bool
) -> None:
    before = tmp_path / "before"
    for name, text in (("final", "first"), ("new", "second")):
        (made(before / name, text) / "file").write_text(text)
    (before / "final" / "notes.txt").write_text("mine")
    users = ["final.old", "final.partial", "final.steps", ".final.tmp"]
    for name in users:
        made(before / name, "mine")
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(exchanges)]
    subprocess.run(words, check=True, cwd=ROOT)
    trials = list(tmp_path.glob("trial*"))
    assert len(trials) > 10
    came: list[str] = []
    for trial in trials:
        assert all((trial / name / "inner" / "file").read_text() == "mine" for name in users)
        final = trial / "final"
        if not exchanges and not final.exists():
            [final] = trial.glob(".final.*.earlier")
        assert (final / "notes.txt").read_text() == "mine"
        [content] = {(final / name).read_text() for name in ("file", "inner/file")}
        came.append(content)
    assert set(came) == {"first", "second"}


def test_what_is_not_ours_stays_in_a_folder_that_is_replaced(tmp_path: Path) -> None:
    final = made(tmp_path / "final", "first")
    (final / "notes.txt").write_text("mine")
    (final / "inner" / "notes.txt").write_text("mine")
    (final / "link").symlink_to("nowhere")
    new = made(tmp_path / "temporary", "second")
    (new / "notes.txt").write_text("second")
    publish_folder(new, final, {"inner/file"})
    [kept] = final.glob("notes.txt.kept-*")
    assert kept.read_text() == (final / "inner" / "notes.txt").read_text() == "mine"
    assert (final / "notes.txt").read_text() == (final / "inner" / "file").read_text() == "second"
    assert os.readlink(final / "link") == "nowhere"
    assert names(tmp_path) == ["final"]


def test_a_file_with_the_folders_name_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "final").write_text("mine")
    with pytest.raises(WriteError, match="Not a directory"), whole_folder(tmp_path / "final") as temporary:
        (temporary / "file").write_text("x")
    assert (tmp_path / "final").read_text() == "mine"
    assert names(tmp_path) == ["final"]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    disk = made(tmp_path / "disk" / "folder", "first")
    (tmp_path / "final").symlink_to(disk)
    with whole_folder(tmp_path / "final") as temporary:
        assert temporary.parent == disk.parent
        (temporary / "file").write_text("second")
    assert (tmp_path / "final").is_symlink()
    assert (disk / "file").read_text() == "second"
    assert names(disk) == ["file"]


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    final = tmp_path / "new" / "final"
    for content in ("first", "second"):
        with whole_folder(final) as temporary:
            (temporary / "file").write_text(content)
        assert (final / "file").read_text() == content
    with pytest.raises(FileNotFoundError, match="input"), whole_folder(final) as temporary:
        (tmp_path / "input").read_text()  # another file: its own error is the right one
    assert (final / "file").read_text() == "second"
    assert names(tmp_path / "new") == ["final"]


def test_a_full_disk_within_a_folder_names_the_folder(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with full_at(1000), pytest.raises(WriteError) as caught, whole_folder(final) as temporary:
        write_whole(temporary / "file", b"x" * 10_000)
    assert str(caught.value) == f"cannot write {final}: File too large; make room or choose another place"
    assert names(tmp_path) == []


# -- records --------------------------------------------------------------------------------------------


def test_a_record_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        append_whole(file, b"first\n")
        with full_at(10), pytest.raises(OSError, match="No space left"):
            append_whole(file, b"second\n")
        append_whole(file, b"third\n")
    finally:
        os.close(file)
    assert (tmp_path / "log").read_bytes() == b"first\nthird\n"


def test_a_pipe_that_takes_a_part_is_given_the_rest() -> None:
    reading, writing = os.pipe()
    received: list[bytes] = []

    def read() -> None:
        while part := os.read(reading, 1000):
            received.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    write_stream(writing, b"x" * 1_000_000)
    os.close(writing)
    thread.join()
    os.close(reading)
    assert b"".join(received) == b"x" * 1_000_000
