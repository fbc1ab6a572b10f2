"""The timeline: every message as a JSON line, written so that whatever happens the file holds whole lines only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from runtime.messages import Message, record
from vaemotion.contract.errors import UsageError, UserError


class JsonLines:
    """Writes to a file, or to standard output when ``target`` is "-"."""

    def __init__(self, target: str) -> None:
        """Open the file, replacing an earlier timeline. Raises UsageError for any other file that is not empty."""
        self._name = "standard output" if target == "-" else target
        self._file = sys.stdout.fileno() if target == "-" else _open(Path(target))
        self._is_file = target != "-"

    def publish(self, message: Message) -> None:
        """One message is one write, so that a kill cannot leave half a line. Raises UserError when the disk is full."""
        line = json.dumps(record(message), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            while 0 < written < len(line) and not self._is_file:  # a pipe may take a part
                written += os.write(self._file, line[written:])
        except OSError as error:
            raise UserError(
                f"cannot write to {self._name}: {error.strerror}; make room or choose another --out"
            ) from error
        if written < len(line):
            os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR) - written)
            raise UserError(f"cannot write to {self._name}: no space left; make room or choose another --out")

    def close(self) -> None:
        """Close the file."""
        if self._is_file:
            os.close(self._file)


def _open(path: Path) -> int:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        head = b""
    except OSError as error:
        raise UserError(f"cannot write the timeline {path}: {error.strerror}") from error
    if head and path.is_file() and not head.startswith(b'{"type"'):
        raise UsageError(f"{path} exists and is not a timeline; give --out jsonl: another file")
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        raise UserError(f"cannot write the timeline {path}: {error.strerror}") from error
