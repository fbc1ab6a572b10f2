"""Call a function in a process of its own, because a driver may hang and a library may abort or print.

In: a function of an importable module, and its arguments. Out: its result, through JSON, or ProbeError
with the reason.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from vaemotion.contract.errors import UserError

DEVICE_S = 3.0  # for a camera or microphone to give something, counted from when its library is loaded
PROBE_S = 60.0  # for one probe, Python's own start included: a slow card holds the packages
_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class ProbeError(UserError):
    """A failed probe with its reason. The part after the first "; " is the way out."""


def in_child(
    probe: Callable[[*_Arguments], _Result], *arguments: *_Arguments, limit_s: float = PROBE_S
) -> _Result:
    """Call a module's function ``probe`` in a new process and return its result.

    Arguments and result are passed as JSON. Raises ProbeError with the probe's error, or when the process
    dies or gives no answer within ``limit_s``.
    """
    code = "import sys; from runtime.machine.child_process import answer; answer(*sys.argv[1:])"
    home = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), home)))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, probe.__module__, probe.__name__, json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search},
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ProbeError(f"gave no answer within {limit_s:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            with suppress(
                subprocess.TimeoutExpired
            ):  # inside a driver, a process may not even end by SIGKILL
                process.communicate(timeout=1)
    if process.returncode == -signal.SIGALRM:
        raise ProbeError(f"gave nothing within {DEVICE_S:g} s")
    if process.returncode != 0:
        raise ProbeError(_death(process.returncode, err.decode(errors="replace")))
    result: dict[str, Any] = json.loads(out.decode(errors="replace").splitlines()[-1])
    if "error" in result:
        raise ProbeError(result["error"])
    return result["result"]


def _death(code: int, log: str) -> str:
    """Describe a process's end by its exit code and its standard error."""
    if code == -signal.SIGILL:
        return "uses instructions that this processor lacks; build the package from source on this machine"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}; check free memory and reinstall the package"
    return f"ended with code {code}: {(log.strip().splitlines() or ['no reason given'])[-1]}"


def answer(module: str, probe: str, arguments: str) -> None:
    """Print the result or the error as the last line of stdout; the child's side of ``in_child``."""
    try:
        result = {"result": getattr(untyped(module), probe)(*json.loads(arguments))}
    except Exception as error:  # any error is passed to the parent as a sentence
        result = {"error": sentence_of(error)}
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # a library's exit handler could hang, too


def untyped(module: str) -> Any:
    """Import a module that has no types."""
    return importlib.import_module(module)


def sentence_of(error: Exception) -> str:
    """Return a user's error as it is, any other with its type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
