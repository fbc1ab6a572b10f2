"""A timeline's regular file: locked for the run, rotated by size, and followed where others rotate it.

In: whole lines as bytes. Out: a file that holds whole lines only. With ``max_bytes`` the file is rotated:
``timeline`` is the newest, ``timeline.1`` the one before, up to ``timeline.N``. A program such as logrotate
may rotate it instead: every line is appended to what the file holds then (``copytruncate``), and a file that
was moved away is replaced within ``LOOK_EVERY_S``.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import append_whole, is_open_at, open_locked, way_out

LOOK_EVERY_S = 1.0  # between two looks whether the path still names the open file


class TimelineFile:
    """A regular file that only this run writes."""

    def __init__(self, path: Path, max_bytes: int | None, keep: int) -> None:
        """Lock the file; then rotate an earlier timeline, or empty it where ``max_bytes`` is None.

        ``keep``: count of older files that stay. Raises UsageError for a file that is neither empty nor a
        timeline, UserError for one that another run writes or that cannot be written.
        """
        # A rotation moves the file itself, not a link to it.
        self._path = Path(os.path.realpath(path))
        self._max_bytes, self._keep = max_bytes, keep
        self._next_look_s = time.monotonic() + LOOK_EVERY_S
        try:
            self._file = _open_timeline(self._path)
            try:
                if self._max_bytes is None:
                    os.ftruncate(self._file, 0)
                elif not self.is_empty:
                    self._rotate()
            except BaseException:
                self.close()
                raise
        except BlockingIOError as error:
            raise UserError(
                f"the timeline {path} is being written already; end the run that writes it, "
                "or give --out jsonl: another file"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write the timeline {path}: {error.strerror}; {way_out(error.errno)} another --out"
            ) from error

    @property
    def is_empty(self) -> bool:
        """The next line will be the file's first."""
        return self._size_bytes == 0

    def prepare(self, line_bytes: int, head_bytes: int) -> None:
        """Make the file that the next line goes to the open one.

        ``line_bytes``: size of the line; ``head_bytes``: size of the first line of each file. Raises OSError.
        """
        self._follow()
        if self._max_bytes is not None and head_bytes < self._size_bytes > self._max_bytes - line_bytes:
            self._rotate()

    def write(self, lines: bytes) -> None:
        """Append whole lines in one call. Raises OSError; the file then is as before."""
        append_whole(self._file, lines)

    def close(self) -> None:
        os.close(self._file)

    @property
    def _size_bytes(self) -> int:
        return os.fstat(self._file).st_size

    def _follow(self) -> None:
        """Open the path again where it names another file, or none. Until that succeeds the old one stays."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_EVERY_S
        with contextlib.suppress(OSError, UsageError):
            if not is_open_at(self._file, self._path):
                self._switch_to(_open_timeline(self._path))

    def _rotate(self) -> None:
        """Start a new file; it is opened before the older ones move, so that a full disk moves nothing."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        file = open_locked(temporary)
        try:
            os.ftruncate(file, 0)
            _shift(self._path, self._keep)
            os.replace(temporary, self._path)
        except OSError:
            os.close(file)
            raise
        self._switch_to(file)

    def _switch_to(self, file: int) -> None:
        os.close(self._file)
        self._file = file


def _open_timeline(path: Path) -> int:
    """Open and lock an empty file or a timeline. Raises UsageError for any other file, and OSError."""
    file = open_locked(path)
    try:
        head = os.pread(file, 8, 0)
        if head and not head.startswith(b'{"type"'):
            raise UsageError(f"{path} exists and is not a timeline; give --out jsonl: another file")
    except BaseException:
        os.close(file)
        raise
    return file


def _shift(path: Path, keep: int) -> None:
    """Rename ``path.1`` to ``path.2`` and so on, and give ``path`` the second name ``path.1``.

    ``path.keep`` is removed. ``path`` keeps its name until the new file takes it: a second run that starts
    just then finds a locked file, not a free name.
    """
    names = [path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1)]
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
