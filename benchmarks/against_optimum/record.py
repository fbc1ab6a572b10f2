"""One piece of work in a process of its own: how long it took, its peak memory, and its failure as one line.

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
    """Do ``work`` and write ``file``: seconds, peak memory, the versions of ``packages``, and the error or null."""
    began_s, error = time.monotonic(), None
    try:
        work()
    except Exception as failure:  # whatever an exporter raises is a result here
        error = one_line(failure)
    values = {
        "export_s": time.monotonic() - began_s,
        "peak_memory_mib": peak_memory_mib(),
        "versions": {name: found for name in packages if (found := installed(name))},
        "error": error,
    }
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def one_line(failure: BaseException) -> str:
    """Type and message without line breaks."""
    return " ".join(f"{type(failure).__name__}: {failure}".split())


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory_mib() -> float:
    """Largest resident memory of this process, by Linux. ``getrusage`` would count the parent's, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
