"""The timeline sink: every message as a JSON line, in a file that always holds whole lines only.

With ``max_bytes`` the file is rotated: ``timeline`` is the newest, ``timeline.1`` the one before, up to
``timeline.N``. Each begins with the run's ``Start``, so that each is a timeline of its own. A full disk then
costs lines, which are counted, and not the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from pathlib import Path

from runtime.messages import Message, Start, record
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import append_whole


class JsonLines:
    """A timeline in a file, or on standard output where ``target`` is "-"."""

    def __init__(self, target: str, max_bytes: int | None = None, keep: int = 5) -> None:
        """Open the file.

        ``max_bytes``: size above which the file is rotated, None for no rotation; ``keep``: older files
        that stay. An earlier timeline is rotated, or replaced without rotation. Only a regular file is
        rotated. Raises UsageError for a file that is neither empty nor a timeline, UserError where it
        cannot be written.
        """
        if keep < 1 or (max_bytes is not None and max_bytes < 1):
            raise ValueError(f"max_bytes and keep must be at least 1, got {max_bytes} and {keep}")
        self._name = "standard output" if target == "-" else target
        self._path, self._is_file = Path(target), target != "-"
        self._max_bytes, self._keep = max_bytes, keep
        self.dropped = 0  # lines lost on a full disk
        self._start, self._size = b"", 0
        self._rotates = False
        if not self._is_file:
            self._file = sys.stdout.fileno()
            return
        _check_replaceable(self._path)
        try:
            if max_bytes is not None and self._path.is_file() and self._path.stat().st_size:
                _shift(self._path, keep)
            self._file = _open(self._path)
        except OSError as error:
            raise UserError(f"cannot write the timeline {self._path}: {error.strerror}") from error
        self._rotates = max_bytes is not None and stat.S_ISREG(os.fstat(self._file).st_mode)

    def publish(self, message: Message) -> None:
        """Write a message in one call, so that a kill cannot leave half a line.

        Raises UserError when the disk is full and there is no rotation.
        """
        line = json.dumps(record(message), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if isinstance(message, Start):
            self._start = line
        try:
            if self._rotates and len(self._start) < self._size > (self._max_bytes or 0) - len(line):
                self._rotate()
            if self._size == 0 and line is not self._start:
                line = self._start + line
            append_whole(self._file, line, self._is_file)
            self._size += len(line)
        except OSError as error:
            if self._max_bytes is None:
                raise UserError(
                    f"cannot write to {self._name}: {os.strerror(error.errno or 0)}; "
                    "make room or choose another --out"
                ) from error
            self.dropped += 1

    def close(self) -> None:
        """Close the file."""
        if self._is_file:
            os.close(self._file)

    def _rotate(self) -> None:
        """Start a new file; it is opened before the older ones move, so that a full disk moves nothing."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        file = _open(temporary)
        try:
            _shift(self._path, self._keep)
            os.replace(temporary, self._path)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self._size = file, 0


def _shift(path: Path, keep: int) -> None:
    """Rename ``path`` to ``path.1``, ``path.1`` to ``path.2`` and so on; ``path.keep`` is replaced."""
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1))]
    for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
        with contextlib.suppress(FileNotFoundError):
            os.replace(newer, older)


def _check_replaceable(path: Path) -> None:
    """Raise UsageError for a file that is neither empty nor a timeline, UserError for an unreadable one."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot write the timeline {path}: {error.strerror}") from error
    if head and path.is_file() and not head.startswith(b'{"type"'):
        raise UsageError(f"{path} exists and is not a timeline; give --out jsonl: another file")


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
