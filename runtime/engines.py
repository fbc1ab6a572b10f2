"""Engines: one ``run(arrays) -> arrays`` over whatever executes an ONNX component on this machine.

The order is TensorRT, ONNX Runtime on CUDA, ONNX Runtime on the CPU. The choice is made once, at start, and announced with the reason of
every step that was left out. What was asked for is compared with what ONNX Runtime really uses: it lists providers that cannot run and falls
back in silence.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from runtime.engine_io import Arrays, Engine, EngineError, EngineUnavailable, OpenedEngine, check_input
from runtime.gpu import tensorrt_is_installed
from vaemotion.contract.bundle import BundleError, Component, Manifest, component_path

__all__ = ["Arrays", "Engine", "EngineError", "EngineUnavailable", "OnnxRuntimeEngine", "OpenedEngine", "open_engine"]  # fmt: skip

# Engines in their order, each with the precisions that it runs in theirs. "int8" is symmetric Q/DQ for TensorRT, "int8-cpu" ONNX Runtime's own.
PRECISIONS = {
    "tensorrt": ("int8", "fp16", "fp32"),
    "cuda": ("fp16", "fp32"),
    "cpu": ("int8-cpu", "fp32"),
}
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """A component on ONNX Runtime's CPU provider, or with ``cuda`` on its CUDA provider.

    Raises EngineUnavailable where a session does not get CUDA.
    """

    def __init__(self, path: Path, component: Component, threads: int = 2, *, cuda: bool = False) -> None:
        ort = _onnxruntime()
        if cuda and CUDA not in ort.get_available_providers():
            raise EngineUnavailable("onnxruntime has no CUDA provider")
        wanted = [CUDA, CPU] if cuda else [CPU]
        asked: list[Any] = [(CUDA, {"use_tf32": "0"}), CPU] if cuda else [CPU]  # FP32 means 32 bits
        try:
            self._session: Any = ort.InferenceSession(
                str(path), _options(ort, threads, component.precision), providers=asked, enable_fallback=0
            )
        except Exception as error:  # onnxruntime raises its own types, all of them derived from Exception
            if cuda:
                raise EngineUnavailable(f"ONNX Runtime cannot use CUDA ({error})") from error
            raise BundleError(f"{component.label}: ONNX Runtime cannot load {path.name}: {error}") from error
        got = self._session.get_providers()
        if got != wanted:
            if cuda:
                raise EngineUnavailable(
                    f"onnxruntime was asked for CUDA and took {', '.join(got)}; are a GPU, CUDA and cuDNN there?"
                )
            raise EngineError(f"{component.label}: asked for {wanted}, ONNX Runtime chose {got}")
        self.component = component
        where = "CUDA" if cuda else f"the CPU, {threads} threads"
        self.announcement = f"{component.label}: ONNX Runtime {ort.__version__} on {where}"
        self._outputs = [spec.name for spec in component.outputs]

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """One inference. Raises EngineError that names the input that does not fit."""
        for spec in self.component.inputs:
            check_input(self.component.label, spec, arrays)
        values = self._session.run(
            self._outputs, {spec.name: arrays[spec.name] for spec in self.component.inputs}
        )
        return dict(zip(self._outputs, values, strict=True))


def _onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")  # it ships no types
    except ImportError as error:
        raise EngineError(
            "onnxruntime is not installed; install the extra: pip install 'vaemotion[cpu]'"
        ) from error


def _options(ort: Any, threads: int, precision: str) -> Any:
    options = ort.SessionOptions()
    if precision in (
        "fp16",
        "int8",
    ):  # ONNX Runtime 1.32 crashes on float16 convolutions when it changes their layout
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the LLM needs the cores
    return options


def open_engine(
    folder: Path,
    manifest: Manifest,
    role: str,
    threads: int = 2,
    *,
    precision: str | None = None,
    engine: str | None = None,
) -> OpenedEngine:
    """The first engine of the order that runs here, in the best of the bundle's precisions that it runs.

    ``precision`` and ``engine`` ("tensorrt", "cuda", "cpu") ask for one: it is that one, or an error. Raises EngineError, BundleError.
    """
    manifest.component(role, precision)  # says what the bundle has where it lacks the role or the precision
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
        return opened
    label = role if precision is None else f"{role} ({precision})"
    reasons = "; ".join(skipped) or _nothing_runs(manifest, role, engine)
    raise EngineError(f"{label}: no engine of this machine runs it: {reasons}")


def candidates(manifest: Manifest, role: str, engine: str, precision: str | None) -> list[Component]:
    """The bundle's components of a role that an engine runs, the preferred precision first."""
    listed = {component.precision: component for component in manifest.components if component.role == role}
    return [listed[p] for p in PRECISIONS[engine] if p in listed and precision in (None, p)]


def check_request(engine: str | None, precision: str | None) -> None:
    """Raises EngineError for an engine that does not exist, and for a precision that the engine asked for cannot run."""
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
    """The preferred precision that TensorRT builds here."""
    from runtime.tensorrt_open import find_tensorrt, open_tensorrt  # loads nothing of NVIDIA's by itself

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
    """The reasons, or one phrase on a machine where nothing for a GPU is installed."""
    if not skipped:
        return ""
    if not tensorrt_is_installed() and skipped[-1] == "onnxruntime has no CUDA provider":
        return "; no GPU engine is installed"
    return f"; not on anything faster: {'; '.join(skipped)}"


def _nothing_runs(manifest: Manifest, role: str, engine: str | None) -> str:
    listed = ", ".join(c.precision for c in manifest.components if c.role == role)
    names = PRECISIONS if engine is None else {engine: PRECISIONS[engine]}
    runs = "; ".join(f"{name} runs {', '.join(precisions)}" for name, precisions in names.items())
    return f"the bundle has {listed}; {runs}"
