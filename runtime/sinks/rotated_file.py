"""A regular file that grows during a run: locked, rotated by size, and followed where others rotate it.

In: whole lines or records as bytes. Out: a file that holds whole ones only. With ``max_bytes`` the file is
rotated: ``timeline`` is the newest, ``timeline.1`` the one before, up to ``timeline.N``. A file of an earlier
run becomes ``timeline.1``, too. A program such as logrotate may rotate it instead: everything is appended to
what the file holds then (``copytruncate``), and a file that was moved away is replaced within
``LOOK_EVERY_S``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import append_whole, is_open_at, open_locked, way_out

LOOK_EVERY_S = 1.0  # between two looks whether the path still names the open file
# Errors that pass: a run that must not end opens its file later.
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@dataclass(frozen=True)
class FileKind:
    """The kind of a file: its name and option in messages, its first bytes, and its mode when it is made."""

    name: str
    option: str
    begins: bytes
    mode: int


class RotatedFile:
    """A regular file that only this run writes."""

    def __init__(
        self, path: Path, kind: FileKind, max_bytes: int | None, keep: int | None, *, patient: bool = False
    ) -> None:
        """Lock the file; then rotate that of an earlier run.

        ``max_bytes``: see the module, None for no rotation by size. ``keep``: count of older files that stay,
        None for all; with 0 the file of an earlier run is emptied. ``patient``: on a full disk ``prepare``
        opens the file, as soon as there is room. Raises UsageError for a file that is neither empty nor of
        its kind, UserError for one that another run writes or that cannot be written.
        """
        assert max_bytes is None or keep != 0, "a file that is rotated by size keeps older ones"
        # A rotation moves the file itself, not a link to it.
        self._path, self._kind = Path(os.path.realpath(path)), kind
        self._max_bytes, self._keep = max_bytes, keep
        self._file: int | None = None
        self._next_look_s = time.monotonic() + LOOK_EVERY_S
        try:
            self._open()
        except BlockingIOError as error:
            raise UserError(
                f"the {kind.name} {path} is being written already; end the run that writes it, "
                f"or give {kind.option} another file"
            ) from error
        except OSError as error:
            if not (patient and error.errno in _MAY_PASS):
                raise UserError(
                    f"cannot write the {kind.name} {path}: {error.strerror}; "
                    f"{way_out(error.errno)} another {kind.option.removesuffix(' jsonl:')}"
                ) from error

    @property
    def is_empty(self) -> bool:
        """True where the next line is the file's first."""
        return self._size_bytes == 0

    def prepare(self, line_bytes: int, head_bytes: int) -> None:
        """Make the file that the next line goes to the open one.

        ``line_bytes``: size of the line; ``head_bytes``: size of the beginning of each file. Raises OSError.
        """
        if self._file is None:
            self._open()
        self._follow()
        if self._max_bytes is not None and head_bytes < self._size_bytes > self._max_bytes - line_bytes:
            self._rotate()

    def write(self, lines: bytes) -> None:
        """Append whole lines in one call. Raises OSError; the file then is as before."""
        assert self._file is not None, "prepare comes first"
        append_whole(self._file, lines)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    @property
    def _size_bytes(self) -> int:
        return 0 if self._file is None else os.fstat(self._file).st_size

    def _open(self) -> None:
        """Open the file for the first time. Raises OSError."""
        self._file = _open_kind(self._path, self._kind)
        try:
            if self._keep == 0:
                os.ftruncate(self._file, 0)
            elif not self.is_empty:
                self._rotate()
        except BaseException:
            self.close()
            raise

    def _follow(self) -> None:
        """Open the path again where it names another file, or none. Until that succeeds the old one stays."""
        now_s = time.monotonic()
        if self._file is None or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_EVERY_S
        with contextlib.suppress(OSError, UsageError):
            if not is_open_at(self._file, self._path):
                self._switch_to(_open_kind(self._path, self._kind))

    def _rotate(self) -> None:
        """Start a new file; it is opened before the older ones move, so that a full disk moves nothing."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        file = _open_with_mode(temporary, self._kind.mode)
        try:
            os.ftruncate(file, 0)
            _shift(self._path, self._keep)
            os.replace(temporary, self._path)
        except OSError:
            os.close(file)
            raise
        self._switch_to(file)

    def _switch_to(self, file: int) -> None:
        self.close()
        self._file = file


def _open_kind(path: Path, kind: FileKind) -> int:
    """Open and lock a file that is empty or of a kind. Raises UsageError for any other file, and OSError."""
    file = _open_with_mode(path, kind.mode)
    try:
        head = os.pread(file, len(kind.begins), 0)
        if head and head != kind.begins:
            raise UsageError(f"{path} exists and is not a {kind.name}; give {kind.option} another file")
    except BaseException:
        os.close(file)
        raise
    return file


def _open_with_mode(path: Path, mode: int) -> int:
    """Open and lock a file, which is made with ``mode`` where it is missing. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    return open_locked(path)


def _shift(path: Path, keep: int | None) -> None:
    """Rename ``path.1`` to ``path.2`` and so on, and give ``path`` the second name ``path.1``.

    ``path.keep`` is removed; where ``keep`` is None, every file stays. ``path`` keeps its name until the new
    file takes it: a second run that starts just then finds a locked file, not a free name.
    """
    names: list[Path] = []
    for number in itertools.count(1) if keep is None else range(1, keep + 1):
        names.append(path.with_name(f"{path.name}.{number}"))
        if keep is None and not os.path.lexists(names[-1]):
            break
    for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
        with contextlib.suppress(FileNotFoundError):
            os.replace(newer, older)
    names[0].unlink(missing_ok=True)
    try:
        os.link(path, names[0])
    except FileNotFoundError:
        pass  # removed by somebody else
    except OSError:  # a file system without second names
        os.replace(path, names[0])
