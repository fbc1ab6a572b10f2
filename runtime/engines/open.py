"""The choice of the engine that executes an ONNX component on this machine.

The order is TensorRT, ONNX Runtime on CUDA, ONNX Runtime on the CPU. The choice is made at start, and
announced with the reason for which each faster engine was left out. The engines of ONNX Runtime that come
later in the order stand behind it (``FallbackEngine``): a run takes the next one where the chosen one gives
nothing finite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.engines.fallback import FallbackEngine
from runtime.engines.gpu import tensorrt_is_installed
from runtime.engines.io import Arrays, Engine, EngineError, EngineUnavailable, OpenedEngine
from runtime.engines.onnx import OnnxRuntimeEngine
from vaemotion.contract.bundle import Component, Manifest, component_path

__all__ = [
    "Arrays",
    "Engine",
    "EngineError",
    "EngineUnavailable",
    "OnnxRuntimeEngine",
    "OpenedEngine",
    "open_engine",
]

# Engines in order of preference, each with its precisions in order of preference. "int8" is symmetric
# Q/DQ for TensorRT, "int8-cpu" ONNX Runtime's own.
PRECISIONS = {
    "tensorrt": ("int8", "fp16", "fp32"),
    "cuda": ("fp16", "fp32"),
    "cpu": ("int8-cpu", "fp32"),
}


def open_engine(
    folder: Path,
    manifest: Manifest,
    role: str,
    threads: int = 2,
    *,
    precision: str | None = None,
    engine: str | None = None,
) -> OpenedEngine:
    """Open the first engine of the order that runs here, in the preferred one of the bundle's precisions.

    ``precision`` and ``engine`` ("tensorrt", "cuda", "cpu"): take this one and no other. Raises
    EngineError where none can be opened, BundleError where the bundle lacks the component.
    """
    manifest.component(role, precision)  # raises where the bundle lacks the role or the precision
    check_request(engine, precision)
    skipped: list[str] = []
    for name in PRECISIONS if engine is None else (engine,):
        components = candidates(manifest, role, name, precision)
        if not components:
            continue
        try:
            opened = _OPEN[name](folder, manifest, components, threads)
        except EngineUnavailable as error:
            skipped.append(str(error))
            continue
        opened.announcement += _why_not_earlier(skipped)
        names = list(PRECISIONS) if engine is None else [engine]
        later = [
            functools.partial(_OPEN[other], folder, manifest, [component], threads)
            for other in names[names.index(name) :]
            if other != "tensorrt"  # an engine that is built first would keep a run waiting for minutes
            for component in candidates(manifest, role, other, precision)
            if (other, component) != (name, opened.component)
        ]
        return FallbackEngine(opened, later) if later else opened
    label = role if precision is None else f"{role} ({precision})"
    reasons = "; ".join(skipped) or _nothing_runs(manifest, role, engine)
    raise EngineError(f"{label}: no engine of this machine runs it: {reasons}")


def candidates(manifest: Manifest, role: str, engine: str, precision: str | None) -> list[Component]:
    """Return the bundle's components of a role that an engine runs, the preferred precision first."""
    listed = {component.precision: component for component in manifest.components if component.role == role}
    return [listed[p] for p in PRECISIONS[engine] if p in listed and precision in (None, p)]


def check_request(engine: str | None, precision: str | None) -> None:
    """Raise EngineError for an unknown engine, and for a precision that the engine does not run."""
    if engine is not None and engine not in PRECISIONS:
        raise EngineError(f"the engine must be one of {', '.join(PRECISIONS)}, got {engine!r}")
    runs_on = [name for name, runs in PRECISIONS.items() if precision in runs]
    if precision is not None and engine not in (None, *runs_on):
        raise EngineError(f"{engine} does not run {precision}; it runs {', '.join(PRECISIONS[engine])}")
    if precision is not None and not runs_on:
        raise EngineError(f"no engine runs {precision!r}")


def _open_tensorrt(
    folder: Path, manifest: Manifest, components: Sequence[Component], threads: int
) -> OpenedEngine:
    """Open the first of ``components`` that TensorRT builds here."""
    # Importing it loads none of NVIDIA's libraries.
    from runtime.engines.tensorrt.open import find_tensorrt, open_tensorrt

    found = find_tensorrt()
    skipped: list[str] = []
    for component in components:
        try:
            opened = open_tensorrt(found, folder, manifest, component)
        except EngineUnavailable as error:
            skipped.append(f"{component.precision}: {error}")
            continue
        opened.announcement += _why_not_earlier(skipped)
        return opened
    raise EngineUnavailable("; ".join(skipped))


def _open_cuda(
    folder: Path, manifest: Manifest, components: Sequence[Component], threads: int
) -> OpenedEngine:
    return OnnxRuntimeEngine(component_path(folder, components[0]), components[0], threads, cuda=True)


def _open_cpu(
    folder: Path, manifest: Manifest, components: Sequence[Component], threads: int
) -> OpenedEngine:
    return OnnxRuntimeEngine(component_path(folder, components[0]), components[0], threads)


_OPEN: dict[str, Callable[[Path, Manifest, Sequence[Component], int], OpenedEngine]] = {
    "tensorrt": _open_tensorrt,
    "cuda": _open_cuda,
    "cpu": _open_cpu,
}


def _why_not_earlier(skipped: Sequence[str]) -> str:
    """Return the reasons as a clause, or one phrase on a machine without any software for a GPU."""
    if not skipped:
        return ""
    if not tensorrt_is_installed() and skipped[-1] == "onnxruntime has no CUDA provider":
        return "; no GPU engine is installed"
    return f"; not on anything faster: {'; '.join(skipped)}"


def _nothing_runs(manifest: Manifest, role: str, engine: str | None) -> str:
    """Say which precisions the bundle has, and which the engines run."""
    listed = ", ".join(c.precision for c in manifest.components if c.role == role)
    names = PRECISIONS if engine is None else {engine: PRECISIONS[engine]}
    runs = "; ".join(f"{name} runs {', '.join(precisions)}" for name, precisions in names.items())
    return f"the bundle has {listed}; {runs}"
