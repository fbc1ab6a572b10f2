"""A component on ONNX Runtime: on the CPU, or on an NVIDIA GPU through its CUDA provider.

What was asked for is compared with what ONNX Runtime really uses: it lists providers that cannot run and falls back in silence.
On a GPU a batch of one, what a live run asks for ten times a second, is one CUDA graph over memory that stays: its kernels are launched in a
single call. Other sizes run plainly, in the same session.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.engine_io import Arrays, EngineError, EngineUnavailable, batch_of
from vaemotion.contract.bundle import BundleError, Component

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
CUDA_OPTIONS = {
    "use_tf32": "0",  # FP32 means 32 bits
    "arena_extend_strategy": "kSameAsRequested",  # not the next power of two: on a Jetson it is the processor's own memory
}
NO_GRAPH = "-1"  # the graph id of a run that is neither recorded nor replayed


class OnnxRuntimeEngine:
    """A component on ONNX Runtime's CPU provider, or with ``cuda`` on its CUDA provider. ``runs_on``: "cpu" or "cuda".

    Raises EngineUnavailable where a session does not get CUDA.
    """

    def __init__(self, path: Path, component: Component, threads: int = 2, *, cuda: bool = False) -> None:
        ort = _onnxruntime()
        self.component, self.runs_on = component, "cuda" if cuda else "cpu"
        self._outputs = [spec.name for spec in component.outputs]
        self._session: Any
        self._one: BatchOfOne | None = None
        self._run_options: Any = None
        options = _options(ort, threads, component.precision)
        if not cuda:
            self._session = _cpu_session(ort, path, component, options)
            self.announcement = (
                f"{component.label}: ONNX Runtime {ort.__version__} on the CPU, {threads} threads"
            )
            return
        self._session, without_graph = _cuda_session(ort, path, options)
        if not without_graph:
            self._run_options = ort.RunOptions()
            self._run_options.add_run_config_entry("gpu_graph_id", NO_GRAPH)
            try:
                self._one = BatchOfOne(ort, self._session, component, "cuda")
            except Exception as error:  # what cannot be recorded runs plainly
                without_graph = " ".join(str(error).split())
        self.announcement = f"{component.label}: ONNX Runtime {ort.__version__} on CUDA"
        if without_graph:
            self.announcement += f", without a CUDA graph ({without_graph})"

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """One inference at any batch size. Raises EngineError that names the input that does not fit."""
        batch = batch_of(self.component, arrays)
        if batch == 1 and self._one is not None:
            return self._one.run(arrays)
        fed = {spec.name: arrays[spec.name] for spec in self.component.inputs}
        values = self._session.run(self._outputs, fed, self._run_options)
        return dict(zip(self._outputs, values, strict=True))


class BatchOfOne:
    """Inputs and outputs of a batch of one at addresses that stay, on ``device`` ("cuda", or "cpu" for a test): what a CUDA graph is recorded over."""

    def __init__(self, ort: Any, session: Any, component: Component, device: str) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs = {
            spec.name: _on_device(ort, spec.shape, spec.dtype, device) for spec in component.inputs
        }
        self._outputs = {
            spec.name: _on_device(ort, spec.shape, spec.dtype, device) for spec in component.outputs
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        session.run_with_iobinding(self._binding)  # records the graph; nobody waits for it yet

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(arrays[name]))
        self._session.run_with_iobinding(self._binding)
        return {name: np.array(value.numpy()) for name, value in self._outputs.items()}


def _on_device(ort: Any, shape: tuple[int | str, ...], dtype: str, device: str) -> Any:
    zeros = np.zeros((1, *(int(size) for size in shape[1:])), dtype)
    return ort.OrtValue.ortvalue_from_numpy(zeros, device, 0)


def _cpu_session(ort: Any, path: Path, component: Component, options: Any) -> Any:
    try:
        session = ort.InferenceSession(str(path), options, providers=[CPU], enable_fallback=0)
    except Exception as error:  # onnxruntime raises its own types, all of them derived from Exception
        raise BundleError(f"{component.label}: ONNX Runtime cannot load {path.name}: {error}") from error
    if (got := session.get_providers()) != [CPU]:
        raise EngineError(f"{component.label}: asked for {[CPU]}, ONNX Runtime chose {got}")
    return session


def _cuda_session(ort: Any, path: Path, options: Any) -> tuple[Any, str]:
    """A session that may record CUDA graphs, and ""; or where ONNX Runtime refuses that, one that may not, and its reason."""
    if CUDA not in ort.get_available_providers():
        raise EngineUnavailable("onnxruntime has no CUDA provider")
    preload_cuda(ort)
    refused = ""
    for graph in (True, False):
        provider = (CUDA, {**CUDA_OPTIONS, "enable_cuda_graph": str(int(graph))})
        try:
            session = ort.InferenceSession(str(path), options, providers=[provider, CPU], enable_fallback=0)
        except Exception as error:
            refused = refused or " ".join(str(error).split())
            continue
        if session.get_providers() != [CUDA, CPU]:
            raise EngineUnavailable(f"ONNX Runtime cannot use CUDA ({lacking(ort)})")
        return session, refused
    raise EngineUnavailable(f"ONNX Runtime cannot use CUDA ({refused})")


def lacking(ort: Any) -> str:
    """Why the CUDA provider is not there, in the loader's words."""
    libraries = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return "its libraries are there; is a GPU?"


def preload_cuda(ort: Any) -> None:
    """CUDA and cuDNN as pip installs them, of which the loader does not know; a system's own are found without."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()


def _onnxruntime() -> Any:
    try:
        ort: Any = importlib.import_module("onnxruntime")  # it ships no types
    except ImportError as error:
        raise EngineError(
            "onnxruntime is not installed; install the extra: pip install 'vaemotion[cpu]'"
        ) from error
    ort.set_default_logger_severity(4)  # what a provider lacks, we say ourselves
    return ort


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
