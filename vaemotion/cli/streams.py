"""Standard input, output and error of this process, in whatever state the caller left them.

In: the three descriptors, perhaps closed, on a full disk, or with nobody at the other end. Out: streams that
a command can use, and an exit code for what could not be written.
"""

from __future__ import annotations

import io
import os
import sys

from vaemotion.contract.plain_text import plain

_OUTPUT, _ERROR = 1, 2


def open_streams() -> None:
    """Open what is closed on nothing, and let every name be printed.

    A closed descriptor's number would go to the next file that is opened, and messages into that file.
    Standard output is opened for reading only, so that a command that needs it learns that it is closed.
    """
    for descriptor in (0, _OUTPUT, _ERROR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR if descriptor == _ERROR else os.O_RDONLY)  # the lowest free number
            os.set_inheritable(descriptor, True)
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout = os.fdopen(_OUTPUT, "w", closefd=False)
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = os.fdopen(_ERROR, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(message: str) -> None:
    """Print an error on standard error, if anybody reads it."""
    try:
        print(f"vaemotion: error: {plain(message, lines=True)}", file=sys.stderr)
    except OSError:
        _discard(_ERROR)


def flush_streams() -> int:
    """Write what is still buffered, and return an exit code: 1 where standard output was lost, else 0.

    A pipe whose reader has gone is no error that anybody wants to read about.
    """
    exit_code = 0
    try:
        sys.stdout.flush()
    except OSError as error:
        exit_code = 1
        _discard(_OUTPUT)
        if not isinstance(error, BrokenPipeError):
            complain(f"cannot write to standard output: {error.strerror}")
    try:
        sys.stderr.flush()
    except OSError:
        _discard(_ERROR)
    return exit_code


def _discard(descriptor: int) -> None:
    """Let a stream that failed end in nothing, for Python flushes it again when it exits."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)
