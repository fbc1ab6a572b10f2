"""Estimates from a bundle's manifest: memory to run it; memory, disk and time to build its engines.

In: a manifest and a ``Machine``. Out: checks with the figures. Every figure is an estimate and is called one;
the measurement behind each constant stands beside it. Nothing of the bundle is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.commands.doctor.checks import Check
from runtime.machine.facts import has_nvidia_gpu, read_memory

if TYPE_CHECKING:
    from vaemotion.contract.bundle import Component, Manifest

MIB = 2**20
# Python, its libraries, an empty session of each engine and a video decoder; measured: 180 to 190 MiB
PROGRAM_BYTES = 185 * MIB
# The same while engines are loaded; measured: 120 to 130 MiB
STARTED_BYTES = 130 * MIB
# While ONNX Runtime loads an engine it holds more than its weights; measured: 0.7 to 0.8 times as much on
# 100 and 270 MiB, stored in 16 bits and in 32
LOADING_COPIES = 0.8
# The file is mapped; KV cache and work space are added; measured: 1.2 on 258 MiB with a context of 512 tokens
GGUF_COPIES = 1.2
TIMING_CACHE_BYTES = 16 * MIB  # beside each TensorRT engine
# Seconds to build a small TensorRT engine, on a fast and on a slow device; not measured on a Jetson
BUILD_S = (20.0, 120.0)
BUILD_S_PER_MIB = (0.1, 1.0)  # added by its size
CLOSE_PROGRAMS = "close other programs, or use a smaller bundle"
SMALLER_BUNDLE = "use a machine with more memory, or export with a smaller precision"


@dataclass(frozen=True)
class Machine:
    """The facts of a machine that a forecast needs."""

    available_bytes: int  # memory
    total_bytes: int
    tensorrt: bool  # installed, and the machine has an NVIDIA GPU
    cache_folder: str | None  # of built TensorRT engines; None where this user can write none
    cache_free_bytes: int  # on its disk
    cached_bytes: int  # engines in the cache already


def this_machine() -> Machine:
    """Return the facts of the machine that this runs on. Creates nothing."""
    from runtime.engines.cache import cache_folder
    from runtime.engines.gpu import tensorrt_is_installed

    memory, folder = read_memory(), cache_folder()
    there = None if folder is None else _nearest_writable(folder)
    return Machine(
        memory.available_bytes,
        memory.total_bytes,
        tensorrt=tensorrt_is_installed() and has_nvidia_gpu(),
        cache_folder=str(folder) if there else None,
        cache_free_bytes=shutil.disk_usage(there).free if there else 0,
        cached_bytes=_bytes_in(folder) if folder and there else 0,
    )


def _nearest_writable(path: Path) -> Path | None:
    """Return ``path`` or its nearest parent that is there; None where this user can make nothing in it."""
    there = next((p for p in (path, *path.parents) if os.path.lexists(p)), Path())
    return there if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK) else None


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with suppress(OSError):  # a broken link, or removed meanwhile
            total += file.stat().st_size
    return total


def forecast(manifest: Manifest, machine: Machine) -> list[Check]:
    """Return the estimates for a bundle on a machine, and the memory that exporting it took.

    Memory to run it; where TensorRT is used, also memory, disk and time to build its engines.
    """
    checks = [_room_to_run(manifest, machine)]
    if machine.tensorrt:
        engines = _engines(manifest, "tensorrt")
        checks += [_room_to_build(engines, machine), _room_on_disk(engines, machine), _time_to_build(engines)]
    exported = manifest.lineage.get("export_peak_memory_mb")
    if isinstance(exported, int | float):
        here = f"{machine.total_bytes / 1e9:.1f} GB in this machine"
        checks.append(Check("memory to export", None, f"{exported / 1000:.1f} GB for this bundle; {here}"))
    return checks


def _engines(manifest: Manifest, engine: str) -> list[Component]:
    """Return the components that a run opens: of each role the first precision that ``engine`` runs."""
    from runtime.engines.open import candidates
    from vaemotion.contract.bundle import ENGINE_ROLES

    found = [candidates(manifest, role, engine, None) for role in ENGINE_ROLES]
    return [components[0] for components in found if components]


def needed_bytes(manifest: Manifest, engine: str, ticks: int) -> float:
    """Estimate the peak memory of a run that encodes ``ticks`` at once. ``engine``: "tensorrt" or "cpu"."""
    from runtime.perception.ticks import batch_bytes

    engines = _engines(manifest, engine)
    # Weights that are stored in 16 bits may be computed with in 32; older bundles do not say it.
    weights = [max(component.bytes, component.weights_bytes) for component in engines]
    loading = STARTED_BYTES + sum(weights) + LOADING_COPIES * max(weights, default=0)
    running = PROGRAM_BYTES + sum(weights) + GGUF_COPIES * manifest.component("language_model").bytes
    return max(loading, running + batch_bytes(engines, ticks))


def _room_to_run(manifest: Manifest, machine: Machine) -> Check:
    """Estimate the memory of a live run and of a file at full pace, whose batches fit what is available."""
    from runtime.perception.ticks import batch_ticks

    engine = "tensorrt" if machine.tensorrt else "cpu"
    needed = needed_bytes(manifest, engine, 1)
    ticks = batch_ticks(manifest.components, max(0, round(machine.available_bytes - needed)))
    fast = needed_bytes(manifest, engine, ticks)
    engines_mib = sum(component.bytes for component in _engines(manifest, engine)) / MIB
    value = (
        f"about {needed / MIB:.0f} MiB to run, {fast / MIB:.0f} MiB for files at full pace (files: engines "
        f"{engines_mib:.0f} MiB, language model {manifest.component('language_model').bytes / MIB:.0f} MiB), "
        f"{_memory(machine)}"
    )
    return Check("room in memory", needed < machine.available_bytes, value, _advice(needed, machine))


def _room_to_build(engines: list[Component], machine: Machine) -> Check:
    from runtime.engines.tensorrt.build import WEIGHT_COPIES, WORKSPACE_FLOOR_BYTES

    largest = max((component.bytes for component in engines), default=0)
    needed = PROGRAM_BYTES + WORKSPACE_FLOOR_BYTES + WEIGHT_COPIES * largest
    value = f"about {needed / MIB:.0f} MiB for the largest engine, {_memory(machine)}"
    fits = needed < machine.available_bytes
    return Check("memory to build", fits, value, _advice(needed, machine))


def _room_on_disk(engines: list[Component], machine: Machine) -> Check:
    """Estimate the disk for built engines: each is about as large as its ONNX file."""
    if machine.cache_folder is None:
        value = "this user can write no cache: TensorRT engines are built at every start"
        return Check("disk to build", None, value, "set VAEMOTION_CACHE to a folder that this user can write")
    total = sum(component.bytes + TIMING_CACHE_BYTES for component in engines)
    needed = max(0, total - machine.cached_bytes)
    value = (
        f"about {needed / MIB:.0f} MiB for TensorRT engines, {machine.cache_free_bytes / MIB:.0f} MiB free "
        f"at {machine.cache_folder}"
    )
    fits = needed <= machine.cache_free_bytes
    advice = "free space there, or set VAEMOTION_CACHE to a folder on a larger disk"
    return Check("disk to build", fits, value, "" if fits else advice)


def _time_to_build(engines: list[Component]) -> Check:
    size_mib = sum(component.bytes for component in engines) / MIB
    low_s, high_s = (
        len(engines) * start_s + size_mib * each_s
        for start_s, each_s in zip(BUILD_S, BUILD_S_PER_MIB, strict=True)
    )
    value = f"{low_s / 60:.0f} to {high_s / 60:.0f} minutes, once, for {len(engines)} TensorRT engines"
    return Check("time to build", None, f"{value} (estimated from their size, not measured)")


def _memory(machine: Machine) -> str:
    return f"{machine.available_bytes / MIB:.0f} of {machine.total_bytes / MIB:.0f} MiB available"


def _advice(needed_bytes: float, machine: Machine) -> str:
    if needed_bytes < machine.available_bytes:
        return ""
    return CLOSE_PROGRAMS if needed_bytes < machine.total_bytes else SMALLER_BUNDLE


def probe_forecast(folder: str) -> str:
    """Return a bundle's forecast for this machine as JSON, for a child process: it needs packages."""
    from vaemotion.contract.bundle import read_manifest

    return json.dumps([asdict(check) for check in forecast(read_manifest(Path(folder)), this_machine())])
