"""Entry point of the command line: parse, run one command, turn errors into messages and exit codes.

Commands import their implementation inside their functions, so that `vaemotion --help` answers at once and
a command needs only its own packages. `main` is the only error boundary. Exit codes: 0 success, 1 failure,
2 wrong usage, 130 interrupted; some commands document more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from typer.exceptions import Abort, TyperException

from vaemotion.cli import base, data, demo, evaluate, export, run, train
from vaemotion.cli.app import app
from vaemotion.cli.streams import complain, flush_streams, open_streams
from vaemotion.contract.address import without_secrets
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import WriteError
from vaemotion.contract.plain_text import plain

# Importing a module registers its commands.
COMMANDS: Final = (demo, run, export, base, train, evaluate, data)

_SHOWN_CHARACTERS = 200  # of an argument in a message
# The extra that installs a package which a command may need.
_EXTRA_OF = {
    "accelerate": "train",
    "braceexpand": "train",
    "gguf": "export",
    "llama_cpp": "llm",
    "matplotlib": "plot",
    "onnx": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "safetensors": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "torch": "train",
    "transformers": "train",
    "webdataset": "train",
}


def _message_and_exit_code(error: BaseException) -> tuple[str, int]:
    """Return the message to print for an error, and its exit code."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, TyperException):
        # Typer keeps the prefix that pydantic puts before the message of a choice.
        return error.format_message().replace(": Value error, ", ": "), error.exit_code
    if isinstance(error, (KeyboardInterrupt, Abort)):
        return "interrupted", 130
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if extra := _EXTRA_OF.get(package):
            return f"this command needs {package}: install it with `pip install 'vaemotion[{extra}]'`", 1
    if isinstance(error, WriteError):
        return str(error), 1
    reason = getattr(error, "strerror", None)  # an OSError's, or that of FFmpeg, which may not be one
    if reason:
        file = getattr(error, "filename", None)
        return (reason if file is None else f"cannot use {file}: {reason}; give another path"), 1
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of Path.resolve
        return f"{error}: a link that leads back to itself; give another path", 1
    if isinstance(error, MemoryError):
        return "not enough memory; close other programs, or ask for less", 1
    return f"unexpected {type(error).__name__}: {error}; run again with --debug for a traceback", 1


def _refuse_words(words: Sequence[str]) -> None:
    """Raise UsageError for an argument that is neither a text nor a file's name on any system."""
    for word in words:
        try:
            possible = b"\0" not in os.fsencode(word)
        except UnicodeEncodeError:  # a lone surrogate that stands for no byte
            possible = False
        if not possible:
            raise UsageError(f"the argument {_shown(ascii(word))} holds a character that no name can hold")


def _told(message: str, words: Sequence[str]) -> str:
    """Return a message in which the user's arguments are short, printable and without passwords."""
    values = {value for word in words for value in (word, word.partition("=")[2]) if len(value) > 1}
    for value in sorted(values, key=len, reverse=True):
        harmless = os.path.lexists(value) or value == without_secrets(value)
        for form in (value, str(Path(value))):  # a path has lost the second of two slashes
            shown = _shown(form if harmless else without_secrets(value))
            if shown != form:
                message = message.replace(form, shown)
    return message


def _shown(word: str) -> str:
    """Return an argument for a sentence: at most 200 characters, control characters escaped."""
    cut = word if len(word) <= _SHOWN_CHARACTERS else f"{word[:_SHOWN_CHARACTERS]}…"
    return plain(cut)


def _refuse_foreign_packages() -> None:
    """Raise UserError when another project's package takes the name of one of ours.

    The packages have plain names, because vaemotion is an application for an environment of its own.
    """
    from importlib.util import find_spec

    home = Path(__file__).resolve().parents[2]
    for name in ("runtime", "calibration", "export"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
        if found != home:
            problem = "is missing" if found is None else f"in {found} belongs to another project"
            raise UserError(f"package {name!r} {problem}; install vaemotion into an environment of its own")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    arguments: the command line without the program's name; default: that of the process.
    """
    open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    # OpenMP reads this once, when it is loaded. By default the threads of llama.cpp and torch spin while
    # they wait. On cores with other work, two threads then take fifty times as long as one (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # The matrix products in NumPy are small. A second thread spins, saves no time and doubles the processor
    # time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # From 1.29 on, ONNX Runtime reports every opened model to its vendor and keeps a database for it,
    # unless disabled.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        _refuse_words(words)
        _refuse_foreign_packages()
        result: object = app(words, prog_name="vaemotion", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            print(plain(_told(traceback.format_exc(), words), lines=True), end="", file=sys.stderr)
        message, result = _message_and_exit_code(error)
        # A print that failed is told as what it is: standard output that takes nothing.
        if not (isinstance(error, OSError) and flush_streams()):
            complain(_told(message, words))
        if "NOTIFY_SOCKET" in os.environ:
            from runtime.machine.watchdog import Watchdog

            with contextlib.closing(Watchdog()) as manager:
                manager.status(_told(message, words))  # `systemctl status` shows it after a failure
    lost = flush_streams()
    return result if isinstance(result, int) and result else lost
