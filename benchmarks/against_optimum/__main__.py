"""Compare this project's ONNX export with optimum's in one run: ``make bench-optimum``.

The weights are random and seeded, at AST-base's true shapes. Out: ``build/optimum/result.json`` and the
measured section of ``docs/decisions/0005-against-optimum.md``. Where a tool fails, its error is recorded
instead of figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.against_optimum.environment import COMMAND, ready_python
from benchmarks.against_optimum.report import markdown, replace_measured, rows, vision_rows
from runtime.machine.facts import processor_name
from vaemotion.contract.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "optimum"
DOCUMENT = ROOT / "docs" / "decisions" / "0005-against-optimum.md"
# By key: the kind of part that this project exports (None: optimum exports), the checkpoint, and the number
# of exports (None: one in every round).
EXPORTS: dict[str, tuple[str | None, str, int | None]] = {
    "optimum": (None, "ast", None),
    "ours": ("ast", "ast", None),
    "ours-plain": ("ast-plain", "ast", 1),
    "ours-mean": ("ast-mean", "ast", 1),
    "optimum-smolvlm": (None, "smolvlm", 1),
    "optimum-vision": (None, "smolvlm-vision", 1),
    "ours-vision": ("vision", "smolvlm", 1),
}
MODULE = "benchmarks.against_optimum"
console = Console()


def run(command: list[str], log: Path, threads: int) -> str | None:
    """Run one process with its output in ``log``; return None, or its last line of output if it failed."""
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **offline}, stdout=file, stderr=file, check=False
        )
    if done.returncode == 0:
        return None
    output = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(output) if line.strip()), f"exit code {done.returncode}")


def export_once(key: str, optimum: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Export once in a process of its own; return its record, or the error if there is none."""
    kind, checkpoint, _ = EXPORTS[key]
    record_file, log = folder / f"{key}.json", folder / f"{key}.log"
    record_file.unlink(missing_ok=True)
    arguments = [str(folder / "checkpoints" / checkpoint), str(folder / key), str(record_file)]
    if kind is None:
        command = [str(optimum), "-m", f"{MODULE}.theirs", *arguments]
    else:
        command = [sys.executable, "-m", f"{MODULE}.ours", kind, *arguments]
    began_s = time.monotonic()
    error = run(command, log, threads)
    process_s = time.monotonic() - began_s
    values = json.loads(record_file.read_text(encoding="utf-8")) if record_file.exists() else {"error": error}
    outcome = values["error"] or f"{values['export_s']:.1f} s, {values['peak_memory_mib']:.0f} MiB"
    console.print(f"{key}: {outcome}", highlight=False)
    return {**values, "process_s": process_s}


def export_all(optimum: Path, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Run all exports, round by round.

    Returns by key the runs that succeeded, the first error or None, and versions.
    """
    found: dict[str, Any] = {key: {"runs": [], "error": None, "versions": {}} for key in EXPORTS}
    for index in range(rounds):
        for key, (_, _, times) in EXPORTS.items():
            if times is not None and index >= times:
                continue
            values = export_once(key, optimum, folder, threads)
            found[key]["versions"] = values.pop("versions", {})
            if error := values.pop("error"):
                found[key]["error"] = found[key]["error"] or error.replace(str(folder), "…")
            else:
                found[key]["runs"].append(values)
    return found


def measured(exports: dict[str, Any], folder: Path, repetitions: int, threads: int) -> dict[str, Any]:
    """Measure every exported file with ``measure.py`` in a process of its own."""
    plan_file, result_file, log = folder / "plan.json", folder / "measured.json", folder / "measure.log"
    files = {
        key: {
            "file": str(folder / key / "model.onnx"),
            "checkpoint": str(folder / "checkpoints" / checkpoint),
            # These kinds have the same output, so they share one reference.
            "kind": "ast" if kind in (None, "ast-plain") else kind,
        }
        for key, (kind, checkpoint, _) in EXPORTS.items()
        if exports[key]["runs"]
    }
    plan = {
        "files": files,
        "ast": str(folder / "checkpoints" / "ast"),
        "threads": threads,
        "repetitions": repetitions,
    }
    plan_file.write_text(json.dumps(plan), encoding="utf-8")
    with console.status("measuring parity and latency (some minutes)"):
        error = run(
            [sys.executable, "-m", f"{MODULE}.measure", str(plan_file), str(result_file)], log, threads
        )
    if error:
        raise UserError(
            f"the exported files could not be measured: {error}; if it was killed, free some memory"
        )
    return json.loads(result_file.read_text(encoding="utf-8"))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole comparison and return the values of ``result.json``."""
    optimum = ready_python(FOLDER / "venv")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="against-optimum-") as name:
        folder = Path(name)
        if error := run(
            [sys.executable, "-m", f"{MODULE}.ours", "checkpoints", str(folder / "checkpoints")],
            folder / "checkpoints.log",
            options.threads,
        ):
            raise UserError(
                f"the checkpoints could not be written: {error}; free 3 GB in the temporary folder"
            )
        exports = export_all(optimum, folder, options.rounds, options.threads)
        found = measured(exports, folder, options.repetitions, options.threads)
    return {
        "command": COMMAND,
        "machine": {
            "cpu": processor_name(),
            "cores": os.cpu_count(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
        },
        "threads": options.threads,
        "rounds": options.rounds,
        "repetitions": options.repetitions,
        "versions": {"ours": exports["ours"]["versions"], "optimum's": exports["optimum"]["versions"]},
        "exports": exports,
        **found,
    }


def show(lines: list[list[str]]) -> None:
    """Print a table; the first line is its head."""
    table = Table(show_lines=True)
    for name in lines[0]:
        table.add_column(name, overflow="fold")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of exports with each tool, interleaved")
    parser.add_argument("--repetitions", type=int, default=7, help="timed runs of each file, interleaved")
    parser.add_argument("--threads", type=int, default=1, help="threads of every tool and every run")
    options = parser.parse_args()
    try:
        result = compare(options)
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        show(rows(result))
        show(vision_rows(result))
        text = replace_measured(DOCUMENT.read_text(encoding="utf-8"), markdown(result))
        DOCUMENT.write_text(text, encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    console.print(f"written: {DOCUMENT.relative_to(ROOT)}, {(FOLDER / 'result.json').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
