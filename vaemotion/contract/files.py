"""Writing of files and folders that are whole under their final name, or not there.

In: a path and its content. Out: a file that survives a kill and a power cut, or ``WriteError``.
This module holds the only atomic writer, the only appender of records and the lock of a file that grows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import select
import shutil
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

ABANDONED_S = 3600.0  # without a write for this long, a temporary file belongs to a killed process
_TEMPORARY = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # of this kernel or file system
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)
_NOT_SYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # for a folder on some network file systems


class WriteError(OSError):
    """A file that could not be written. ``errno`` and ``strerror`` hold the cause, ``filename`` the path."""

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}; {way_out(self.errno)} another place"


def way_out(number: int | None) -> str:
    """Return how to get around a failed write, as in "choose" another place. ``number``: its errno."""
    return "make room or choose" if number in _FULL else "choose"


def write_whole(file: Path, content: bytes | str) -> None:
    """Write a file atomically, text as UTF-8. A missing folder is made. Raises WriteError."""
    with whole_file(file) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def whole_file(file: Path) -> Generator[Path]:
    """Yield a temporary path for a library to write to. That file then becomes ``file``.

    The temporary file lies in the folder of ``file``, which is made where it is missing. Its name belongs
    to this call, so several processes may write ``file`` at once; the last one wins. The file and its
    folder are synced to the disk. After an error the temporary file is removed. A killed process leaves
    it behind; a call for the same ``file`` removes it when it is older than ``ABANDONED_S``.

    Raises WriteError for an OSError that concerns ``file``. Other errors of the body pass through.
    """
    with _temporary(file) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, file)
        _sync_folder(file.parent)


@contextmanager
def whole_folder(folder: Path, ours: Collection[str] | None = None) -> Generator[Path]:
    """Yield a temporary empty folder to write into. It then becomes ``folder``, as in ``whole_file``.

    An earlier ``folder`` is removed when the new one is complete. ``ours``: see ``publish_folder``. Raises
    WriteError.
    """
    folder = followed(folder)
    with _temporary(folder) as temporary:
        temporary.mkdir()
        yield temporary
        publish_folder(temporary, folder, ours)


def publish_folder(temporary: Path, final: Path, ours: Collection[str] | None = None) -> None:
    """Move a complete folder to its final name, synced to the disk. An earlier folder there is removed.

    ``ours``: the files of the earlier folder that may be removed, as paths relative to it; None: all. Every
    other file of it stays, and where the new folder has that name it becomes ``NAME.kept-`` and 8 digits.

    A kill leaves the earlier or the new folder under the name, whole. Only where the file system cannot
    exchange two folders it may leave the earlier one under a hidden name that ends in ".earlier". After an
    OSError, which is raised, the earlier folder stands under its name.
    """
    final = followed(final)
    if final.exists() and not final.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
    for path in temporary.rglob("*"):
        if path.is_file():
            _sync(path)
    if ours is not None:
        _keep_others(final, temporary, ours)
    for path in (*temporary.rglob("*"), temporary):
        if path.is_dir() and not path.is_symlink():
            _sync_folder(path)
    if not final.exists():
        os.replace(temporary, final)
        _sync_folder(final.parent)
        return
    earlier = temporary if _exchange(temporary, final) else _replace(temporary, final)
    _sync_folder(final.parent)
    _remove(earlier)


def followed(path: Path) -> Path:
    """Return what a symbolic link names, to be replaced instead of the link; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def own_name(final: Path, suffix: str) -> Path:
    """Return a hidden name beside ``final`` that is this call's own, and that nobody else gives a file."""
    return final.with_name(f"{_prefix(final)}{os.getpid()}.{secrets.token_hex(4)}{suffix}")


def is_own_name(path: Path, final: Path, suffix: str) -> bool:
    """Return True for a name that ``own_name`` gives beside ``final``, in any process."""
    return bool(re.fullmatch(rf"{re.escape(_prefix(final))}\d+\.[0-9a-f]{{8}}{re.escape(suffix)}", path.name))


def _prefix(final: Path) -> str:
    return f".{final.name[:40]}."  # a name may have 255 bytes, with what follows


def _keep_others(earlier: Path, new: Path, ours: Collection[str]) -> None:
    """Give each file of an earlier folder that is not in ``ours`` a name in the new one, too."""
    for folder, folders, files in os.walk(earlier):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *linked):
            path = Path(folder, name)
            relative = path.relative_to(earlier)
            if str(relative) not in ours:
                target = new / relative
                if os.path.lexists(target):
                    target = target.with_name(f"{target.name}.kept-{secrets.token_hex(4)}")
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, target, follow_symlinks=False)
                except OSError:
                    shutil.copy2(path, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step of the file system; False where it cannot. Raises OSError."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _replace(temporary: Path, final: Path) -> Path:
    """Move ``final`` to a name of its own and ``temporary`` to its place. Returns the former's new name."""
    earlier = own_name(final, ".earlier")
    os.replace(final, earlier)
    try:
        os.replace(temporary, final)
    except OSError:
        os.replace(earlier, final)
        raise
    return earlier


def open_locked(file: Path) -> int:
    """Open a regular file for reading and appending, and hold a lock on it while it is open.

    A missing file is made; the content of an existing one stays. The lock is advisory (flock). It keeps out
    every other ``open_locked``, in this process too, and ends with the process. On a file system without
    locks there is none. Returns the descriptor. Raises BlockingIOError while another holds the lock, and
    OSError for a file that cannot be opened.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(descriptor)
            # A file that lost its name before it was locked belongs to whoever moved it.
            if is_open_at(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def locked_folder(folder: Path) -> int:
    """Hold a lock on a folder while the returned descriptor is open, as in ``open_locked``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # the file system has no locks


def is_open_at(descriptor: int, file: Path) -> bool:
    """Return True while ``file`` names the file that ``descriptor`` has open. Raises OSError."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def append_whole(file: int, data: bytes) -> None:
    """Append one record to a regular file: all of it or nothing. Raises OSError."""
    written = os.write(file, data)
    if written < len(data):
        os.ftruncate(file, os.lseek(file, -written, os.SEEK_CUR))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_stream(stream: int, data: bytes) -> None:
    """Write all of ``data`` to a pipe or a device, as slowly as it takes it. Raises OSError."""
    while data:
        try:
            data = data[os.write(stream, data) :]
        except BlockingIOError:  # whoever shares the pipe has made it non-blocking
            waiting = select.poll()
            waiting.register(stream, select.POLLOUT)
            waiting.poll()


@contextmanager
def _temporary(final: Path) -> Generator[Path]:
    """Yield a path of this call's own beside ``final``; in the end nothing is left there."""
    if not final.name:  # "", "." or "/"
        raise WriteError(errno.EISDIR, "a folder that is there already", str(final))
    temporary = own_name(final, _TEMPORARY)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(final)
        yield temporary
    except OSError as error:
        if not _concerns(error, temporary, final):
            raise  # the body failed on another file
        number, reason = error.errno, error.strerror
        if isinstance(error, FileExistsError):  # from mkdir: one of the parents is a file
            number, reason = errno.ENOTDIR, os.strerror(errno.ENOTDIR)
        # NumPy gives no number when the disk took only a part.
        raise WriteError(number or errno.ENOSPC, reason or str(error), str(final)) from error
    finally:
        _remove(temporary)


def _concerns(error: OSError, temporary: Path, final: Path) -> bool:
    """Return True for an error that names no file, or one on the way to ``final``."""
    if error.filename is None:
        return True
    named = Path(str(error.filename))
    return named in (final, *final.parents) or named.is_relative_to(temporary)


def _remove_abandoned(final: Path) -> None:
    """Remove temporary files and folders for ``final`` that killed processes left."""
    with contextlib.suppress(OSError):  # another process may remove them first
        for path in final.parent.iterdir():
            found = is_own_name(path, final, _TEMPORARY)
            if found and time.time() - path.stat().st_mtime > ABANDONED_S:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or folder, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NOT_SYNCABLE:
            raise
