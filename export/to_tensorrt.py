"""``vaemotion engines``: build a bundle's TensorRT engines ahead of time, on the device that runs them.

In: a bundle. Out: every engine in the cache, verified by the golden vectors, and a table. A run then starts
at once. Without this command, the first run builds the same engines (``runtime.engines.tensorrt.build``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from runtime.engines.cache import NO_FOLDER, BatchProfile, cache_folder
from runtime.engines.io import EngineError, EngineUnavailable
from runtime.engines.open import PRECISIONS, candidates
from runtime.engines.tensorrt.engine import TensorRtEngine
from runtime.engines.tensorrt.layers import Int8Report, int8_report
from runtime.engines.tensorrt.open import DEFAULT_PROFILE, TensorRt, find_tensorrt, open_tensorrt
from vaemotion.contract.bundle import ENGINE_ROLES, Component, Manifest, read_manifest, verify_files
from vaemotion.contract.errors import UsageError
from vaemotion.contract.terminal import Terminal


@dataclass(frozen=True)
class EngineRow:
    """Result for one component: an engine with its ``int8`` layers, or the reason why there is none."""

    component: Component
    seconds: float
    outcome: str
    int8: Int8Report | None


def build_engines(bundle: Path, precision: str | None) -> None:
    """Build a bundle's engines and print a table.

    Raises UsageError for a precision that TensorRT does not run, EngineError where this machine has no
    TensorRT or an engine could not be built.
    """
    if precision not in (None, *PRECISIONS["tensorrt"]):
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS['tensorrt'])}, got {precision!r}")
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    try:
        found = find_tensorrt()
    except EngineUnavailable as reason:
        raise EngineError(f"{reason}; a run takes the next engine, see vaemotion doctor") from reason
    report(build_all(found, bundle, manifest, precision))


def build_all(
    found: TensorRt,
    bundle: Path,
    manifest: Manifest,
    precision: str | None,
    profile: BatchProfile = DEFAULT_PROFILE,
) -> list[EngineRow]:
    """Build or find the engine of every role, in each precision of the bundle that TensorRT runs."""
    return [
        _row(found, bundle, manifest, component, profile)
        for role in ENGINE_ROLES
        for component in candidates(manifest, role, "tensorrt", precision)
    ]


def report(rows: list[EngineRow]) -> None:
    """Print the results. Raises EngineError where a component has no engine."""
    console = Terminal()
    console.print(table(rows))
    for row in rows:
        if row.int8 is not None and row.component.precision == "int8":
            names = ", ".join(row.int8.int8) or "none"
            console.print(f"{row.component.label}: {row.int8.sentence()}: {names}")
    folder = cache_folder()
    kept = NO_FOLDER if folder is None else f"engines are kept in {folder / 'tensorrt'}"
    console.print(kept)
    if missing := [row for row in rows if row.int8 is None]:
        raise EngineError(f"no TensorRT engine of {missing[0].component.label}: {missing[0].outcome}")


def _row(
    found: TensorRt, bundle: Path, manifest: Manifest, component: Component, profile: BatchProfile
) -> EngineRow:
    start_s = time.monotonic()
    try:
        engine: TensorRtEngine = open_tensorrt(found, bundle, manifest, component, profile)
    except EngineUnavailable as reason:
        return EngineRow(component, time.monotonic() - start_s, str(reason), None)
    outcome = engine.announcement.removeprefix(f"{component.label}: ")
    return EngineRow(component, time.monotonic() - start_s, outcome, int8_report(engine.layers()))


def table(rows: list[EngineRow]) -> Table:
    """Return the engines as a table for a terminal."""
    made = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for column in ("role", "precision", "s", "INT8", "outcome"):
        made.add_column(column, no_wrap=column != "outcome")
    for row in rows:
        share = "" if row.int8 is None else f"{row.int8.share:.0%}"
        made.add_row(row.component.role, row.component.precision, f"{row.seconds:.1f}", share, row.outcome)
    return made
