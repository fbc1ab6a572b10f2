"""Compare this project's ONNX export with optimum's and its successor's in one run: ``make bench-optimum``.

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
from dataclasses import dataclass
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
MODULE = "benchmarks.against_optimum"


@dataclass(frozen=True)
class Export:
    """One export.

    ``tool``: the module of this package that runs, with its first ``words``. ``reference``: the kind of part
    (``ours.part``) whose output in eager torch the file's is compared with. ``times``: the number of exports,
    None for one in every round.
    """

    tool: str
    words: tuple[str, ...]
    checkpoint: str
    reference: str
    times: int | None = 1


EXPORTS = {
    "optimum": Export("theirs", (), "ast", "ast", None),
    "transformers": Export("successor", ("batch",), "ast", "ast", None),
    "transformers-defaults": Export("successor", ("defaults",), "ast", "ast"),
    "transformers-dynamic": Export("successor", ("dynamic",), "ast", "ast"),
    "ours": Export("ours", ("ast", "torch"), "ast", "ast", None),
    "ours-mean": Export("ours", ("ast-mean", "torch"), "ast", "ast-mean"),
    "ours-mean-transformers": Export("ours", ("ast-mean", "transformers"), "ast", "ast-mean"),
    "optimum-smolvlm": Export("theirs", (), "smolvlm", "smolvlm"),
    "optimum-vision": Export("theirs", (), "smolvlm-vision", "tower"),
    "transformers-smolvlm": Export("successor", ("defaults",), "smolvlm", "smolvlm"),
    "transformers-smolvlm-batch": Export("successor", ("batch",), "smolvlm", "smolvlm"),
    "transformers-vision": Export("successor", ("batch",), "smolvlm-vision", "tower"),
    "ours-vision": Export("ours", ("vision", "torch"), "smolvlm", "vision"),
    "ours-vision-transformers": Export("ours", ("vision", "transformers"), "smolvlm", "vision"),
}
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
    export = EXPORTS[key]
    record_file, log = folder / f"{key}.json", folder / f"{key}.log"
    record_file.unlink(missing_ok=True)
    python = str(optimum) if export.tool == "theirs" else sys.executable
    paths = (folder / "checkpoints" / export.checkpoint, folder / key, record_file)
    command = [python, "-m", f"{MODULE}.{export.tool}", *export.words, *map(str, paths)]
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
        for key, export in EXPORTS.items():
            if export.times is not None and index >= export.times:
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
            "checkpoint": str(folder / "checkpoints" / export.checkpoint),
            "kind": export.reference,
        }
        for key, export in EXPORTS.items()
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
