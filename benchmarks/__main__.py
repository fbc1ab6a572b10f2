"""Measure the speed of the runtime against named peers and write ``docs/performance.md``.

    python -m benchmarks                     # the short set, about ten minutes on two idle cores
    python -m benchmarks --full              # with torch.compile, and an hour of media
    python -m benchmarks front_end encoders  # these sections only; stored results of the others stay
    python -m benchmarks gpu                 # the section for an NVIDIA GPU, never part of the others
    python -m benchmarks --report            # only write the document again, from stored results

Each section runs in a process of its own and writes its figures to ``docs/performance/SECTION.json``. The
exit code is 1 if a figure misses its target.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import ON_A_GPU, SECTIONS, write
from benchmarks.report import DOCUMENT, FOLDER, read_sections, show, write_document

WORK = Path("build/performance")  # models and media, kept for later calls


def measure(section: str, full: bool) -> None:
    """Measure one section in this process.

    As in the runtime, OpenBLAS has one thread: its threads spin while they wait, which beside other work
    takes fifty times as long.
    """
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
    parser.add_argument("--full", action="store_true", help="measure the longer set")
    parser.add_argument("--report", action="store_true", help="only write the document again")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS + ON_A_GPU):
        known = ", ".join(SECTIONS + ON_A_GPU)
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose from {known}")
    if options.here:
        measure(options.sections[0], options.full)
        return 0
    for section in () if options.report else options.sections or SECTIONS:
        print(f"\n=== {section} ===", flush=True)
        command = [sys.executable, "-m", "benchmarks", section, "--here"]
        subprocess.run([*command, "--full"] if options.full else command, check=True)
    sections = read_sections()
    write_document(sections)
    missed = [figure.what for one in sections for figure in one.section.figures if figure.met is False]
    print(f"\n{DOCUMENT}: " + (f"missed: {'; '.join(missed)}" if missed else "every target is met"))
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
