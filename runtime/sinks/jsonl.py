"""The timeline sink: every message as a JSON line, in an output that always holds whole lines only.

The output is a regular file (``runtime.sinks.rotated_file``), or a pipe, a FIFO, a device or a descriptor
(``runtime.sinks.stream``). Each file and each stream begins with the run's ``Start``, so that each is a
timeline of its own. A full disk costs a live run lines, which its ``Outbox`` counts, and not the run.
"""

from __future__ import annotations

import os
from pathlib import Path

from runtime.messages import Message, Start, to_json
from runtime.sinks.rotated_file import FileKind, RotatedFile
from runtime.sinks.stream import STANDARD_OUTPUT, InheritedStream, NamedStream, descriptor_of
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import way_out

TIMELINE = FileKind("timeline", "--out jsonl:", b'{"type": "start"', 0o644)


class JsonLines:
    """A timeline in a file, a pipe or a device; on standard output where ``target`` is "-"."""

    def __init__(
        self, target: str, *, live: bool = False, max_bytes: int | None = None, keep: int = 5
    ) -> None:
        """Open the output.

        ``live``: a line that cannot be written is lost, and the next one is tried. ``max_bytes``: size
        above which a regular file is rotated, None for no rotation; ``keep``: older files that stay. An
        earlier timeline is rotated. Without ``max_bytes`` a live run keeps every older file, and another run
        replaces an earlier timeline. Raises UsageError for a file that is neither empty nor a timeline,
        UserError where it cannot be written or another run writes it.
        """
        if keep < 1 or (max_bytes is not None and max_bytes < 1):
            raise ValueError(f"max_bytes and keep must be at least 1, got {max_bytes} and {keep}")
        self._name = "standard output" if target == "-" else target
        self._live = live
        self._output = _open_output(target, self._name, live, max_bytes, keep)
        self._start = b""

    def publish(self, message: Message) -> None:
        """Write a message in one call, so that a kill cannot leave half a line.

        Raises ReaderGone when a pipe's reader has gone. Where the line cannot be written, raises OSError in a
        live run, whose next line may be written, and UserError in another one.
        """
        line = to_json(message).encode() + b"\n"
        if isinstance(message, Start):
            self._start = line
        try:
            self._output.prepare(len(line), len(self._start))
            if self._output.is_empty and line is not self._start:
                line = self._start + line
            self._output.write(line)
        except OSError as error:
            if self._live:
                raise
            raise UserError(
                f"cannot write to {self._name}: {error.strerror}; {way_out(error.errno)} another --out"
            ) from error

    def close(self) -> None:
        """Close the output."""
        self._output.close()


def _open_output(
    target: str, name: str, live: bool, max_bytes: int | None, keep: int
) -> InheritedStream | NamedStream | RotatedFile:
    """Open what ``target`` names: standard output, a descriptor, a file, or anything else with a path."""
    path = Path(target)
    descriptor = STANDARD_OUTPUT if target == "-" else descriptor_of(path)
    if descriptor is not None:
        return InheritedStream(descriptor, name)
    if os.path.isfile(path) or not os.path.exists(path):
        kept = keep if max_bytes is not None else None if live else 0
        return RotatedFile(path, TIMELINE, max_bytes, kept, patient=live)
    return NamedStream(path, live=live)
