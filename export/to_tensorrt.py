"""``vaemotion engines``: build a bundle's TensorRT engines ahead of time, on the device that will run them.

In: a bundle. Out: every engine in the cache, proved by the golden vectors, and a table of what each became. A run then starts at once. The
building itself is the device's own (``runtime.tensorrt_build``): a run without this command does the same at its first start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from runtime.engine_cache import BatchProfile, cache_folder
from runtime.engine_io import EngineError, EngineUnavailable
from runtime.engines import PRECISIONS, candidates
from runtime.tensorrt_engine import TensorRtEngine
from runtime.tensorrt_layers import Int8Report, int8_report
from runtime.tensorrt_open import DEFAULT_PROFILE, TensorRt, find_tensorrt, open_tensorrt
from vaemotion.contract.bundle import ENGINE_ROLES, Component, Manifest, read_manifest, verify_files
from vaemotion.contract.errors import UsageError


@dataclass(frozen=True)
class Row:
    """What became of one component: an engine with its ``int8`` layers, or the reason that there is none."""

    component: Component
    seconds: float
    outcome: str
    int8: Int8Report | None


def build_engines(bundle: Path, precision: str | None) -> None:
    """``vaemotion engines``. Raises EngineError where this machine has no TensorRT, or an engine is missing in the end."""
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
) -> list[Row]:
    """Build or find the engine of every role in each precision of the bundle that TensorRT runs."""
    return [
        _row(found, bundle, manifest, component, profile)
        for role in ENGINE_ROLES
        for component in candidates(manifest, role, "tensorrt", precision)
    ]


def report(rows: list[Row]) -> None:
    """Print what became of them; raises EngineError where one has no engine."""
    console = Console()
    console.print(table(rows))
    for row in rows:
        if row.int8 is not None and row.component.precision == "int8":
            names = ", ".join(row.int8.int8) or "none"
            console.print(f"{row.component.label}: {row.int8.sentence()}: {names}", highlight=False)
    console.print(f"engines are kept in {cache_folder() / 'tensorrt'}", highlight=False)
    if missing := [row for row in rows if row.int8 is None]:
        raise EngineError(f"no TensorRT engine of {missing[0].component.label}: {missing[0].outcome}")


def _row(
    found: TensorRt, bundle: Path, manifest: Manifest, component: Component, profile: BatchProfile
) -> Row:
    start_s = time.monotonic()
    try:
        engine: TensorRtEngine = open_tensorrt(found, bundle, manifest, component, profile)
    except EngineUnavailable as reason:
        return Row(component, time.monotonic() - start_s, str(reason), None)
    outcome = engine.announcement.removeprefix(f"{component.label}: ")
    return Row(component, time.monotonic() - start_s, outcome, int8_report(engine.layers()))


def table(rows: list[Row]) -> Table:
    """The engines, for a terminal."""
    made = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for column in ("role", "precision", "s", "INT8", "outcome"):
        made.add_column(column, no_wrap=column != "outcome")
    for row in rows:
        share = "" if row.int8 is None else f"{row.int8.share:.0%}"
        made.add_row(row.component.role, row.component.precision, f"{row.seconds:.1f}", share, row.outcome)
    return made
