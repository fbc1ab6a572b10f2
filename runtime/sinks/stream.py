"""An output that is no regular file: a pipe, a FIFO, a device, or a descriptor that the shell has opened."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from pathlib import Path

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import append_whole, way_out, write_stream

STANDARD_OUTPUT = 1
_TRY_EVERY_S = 0.1  # to open a FIFO that has no reader


class ReaderGone(UserError):
    """A pipe's reader has gone. As for every program in front of ``head``, the run ends without a word."""


class InheritedStream:
    """A descriptor that this process was started with, such as standard output. It stays open."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Take the descriptor. ``name``: as the user calls it. Raises UserError unless it can be written."""
        self._name, self._descriptor = name, descriptor
        self.is_empty = True  # nothing has been written yet
        if not _is_inherited_for_writing(descriptor):
            raise UserError(f"cannot write to {name}: it is not open for writing; give --out jsonl: a file")
        # A line that a full disk cuts off can be taken back from a file only.
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._append = append_whole if is_file else write_stream

    def prepare(self, line_bytes: int, head_bytes: int) -> None:
        """Nothing to prepare."""

    def write(self, lines: bytes) -> None:
        """Write whole lines. Raises ReaderGone, or OSError."""
        try:
            self._append(self._descriptor, lines)
        except BrokenPipeError as error:
            raise ReaderGone(f"nobody reads {self._name} any more") from error
        self.is_empty = False

    def close(self) -> None:
        """Nothing to close."""


class NamedStream:
    """A FIFO or a device, opened by its path. A FIFO is opened as soon as somebody reads it."""

    def __init__(self, path: Path, *, live: bool) -> None:
        """Open a device; open a FIFO if it has a reader, and tell the user if it has none.

        ``live``: when a FIFO's reader goes away, wait for the next one. Raises UsageError for a path that is
        neither, UserError where it cannot be opened.
        """
        self._path, self._live = path, live
        self.is_empty = True  # nothing has been written since it was opened
        try:
            kind = path.stat().st_mode
            if stat.S_ISSOCK(kind) or stat.S_ISBLK(kind):
                raise UsageError(f"{path} is a socket or a disk; give --out jsonl: a file, a pipe or a FIFO")
            self._stream = _open(path)
        except OSError as error:
            raise UserError(
                f"cannot write to {path}: {error.strerror}; {way_out(error.errno)} another --out"
            ) from error
        if self._stream is None:
            print(f"vaemotion: waiting until a program reads the FIFO {path}", file=sys.stderr)

    def prepare(self, line_bytes: int, head_bytes: int) -> None:
        """Wait until the FIFO has a reader. Raises OSError where it has been removed."""
        while self._stream is None:
            self._stream = _open(self._path)
            if self._stream is None:
                time.sleep(_TRY_EVERY_S)

    def write(self, lines: bytes) -> None:
        """Write whole lines. Raises ReaderGone, or OSError; a live run loses the line then, and goes on."""
        assert self._stream is not None, "prepare comes first"
        try:
            write_stream(self._stream, lines)
        except BrokenPipeError as error:
            if not self._live:
                raise ReaderGone(f"nobody reads {self._path} any more") from error
            self.close()
            raise
        self.is_empty = False

    def close(self) -> None:
        if self._stream is not None:
            os.close(self._stream)
        self._stream, self.is_empty = None, True


def descriptor_of(path: Path) -> int | None:
    """Return N for a path that names this process's descriptor N, as /dev/stdout and /dev/fd/N do; else None.

    Opened anew, such a file would be emptied, and a socket or a log that the shell appends to would not do.
    """
    own = os.path.realpath("/proc/self/fd")
    while True:
        if os.path.realpath(path.parent) == own and path.name.isdecimal():
            return int(path.name)
        if not (os.path.islink(path) and os.path.exists(path)):
            return None
        path = path.parent / path.readlink()


def _is_inherited_for_writing(descriptor: int) -> bool:
    """Return True for a writable descriptor that came from outside, False for one of this program's own."""
    try:
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        return os.get_inheritable(descriptor) and access != os.O_RDONLY
    except OSError:
        return False


def _open(path: Path) -> int | None:
    """Open a FIFO or a device without waiting; None for a FIFO that nobody reads. Raises OSError."""
    try:
        stream = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO and path.is_fifo():
            return None
        raise
    os.set_blocking(stream, True)
    return stream
