"""How fast, against whom: every section of the suite, one after the other, and ``docs/performance.md`` made of what they found.

    python -m benchmarks                     # the short set, about ten minutes on two idle cores
    python -m benchmarks --full              # with torch.compile, and an hour of media
    python -m benchmarks front_end encoders  # these sections only; what the others found before stays in the report
    python -m benchmarks gpu                 # what needs an NVIDIA GPU; not among the others
    python -m benchmarks --report            # nothing is measured: only the report is made again

A section runs in a process of its own. Its figures go to ``docs/performance/SECTION.json``. Exit code 1 where a figure misses its target.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import write
from benchmarks.report import DOCUMENT, FOLDER, read_sections, show, write_document

SECTIONS = ("encoders", "front_end", "language_model", "whole_run", "growth")
ON_A_GPU = ("gpu",)  # measured when it is named
WORK = Path("build/performance")  # models and media that a later call finds again


def measure(section: str, full: bool) -> None:
    """One section, here and now. As in the program itself, threads that wait for each other sleep: what spins beside other work takes fifty times as long."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    module = importlib.import_module(f"benchmarks.{section}")
    WORK.mkdir(parents=True, exist_ok=True)
    load, began_s = os.getloadavg()[0], time.monotonic()
    found = module.measure(WORK, full)
    write(found, FOLDER / f"{section}.json", seconds=time.monotonic() - began_s, load_before=load)
    show(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS + ON_A_GPU))
    parser.add_argument("--full", action="store_true", help="the longer set")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument(
        "--here", action="store_true", help=argparse.SUPPRESS
    )  # this process is a section's own
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS + ON_A_GPU):
        known = ", ".join(SECTIONS + ON_A_GPU)
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {known}")
    if options.here:
        measure(options.sections[0], options.full)
        return 0
    for section in () if options.report else options.sections or SECTIONS:
        print(f"\n=== {section} ===", flush=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            section,
            "--here",
            *(["--full"] if options.full else []),
        ]
        subprocess.run(command, check=True)
    sections = read_sections()
    write_document(sections)
    missed = [figure.what for section in sections for figure in section.found.figures if figure.met is False]
    print(f"\n{DOCUMENT}: " + (f"missed: {'; '.join(missed)}" if missed else "every target is met"))
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
