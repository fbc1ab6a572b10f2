"""Record the duration, peak memory and failure of a function that runs in a process of its own.

In: a function. Out: a JSON file. Standard library only, because it runs in both environments.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def record(work: Callable[[], Any], file: Path, packages: Sequence[str]) -> None:
    """Call ``work`` and write what it took to ``file``, with package versions and its error (or null).

    ``cpu_s`` is the CPU time of the whole process so far, imports included.
    """
    began_s, error = time.monotonic(), None
    try:
        work()
    except Exception as failure:  # any failure of an exporter is a result
        error = one_line(failure)
    values = {
        "export_s": time.monotonic() - began_s,
        "cpu_s": time.process_time(),
        "peak_memory_mib": peak_memory_mib(),
        "versions": {name: found for name in packages if (found := installed(name))},
        "error": error,
    }
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def one_line(failure: BaseException) -> str:
    """Return type and message of an exception without line breaks."""
    return " ".join(f"{type(failure).__name__}: {failure}".split())


def installed(package: str) -> str | None:
    """Return the version of an installed package, None for a missing one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory_mib() -> float:
    """Return the peak resident memory of this process on Linux; ``getrusage`` would include the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
