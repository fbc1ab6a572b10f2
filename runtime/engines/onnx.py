"""A component on ONNX Runtime: on the CPU, or on an NVIDIA GPU through its CUDA provider.

The requested provider is compared with the session's, because ONNX Runtime lists providers that cannot
run and falls back without an error. On a GPU a batch of one, which a live run needs ten times a second,
is one CUDA graph over fixed memory: its kernels are launched in a single call. Other sizes run without a
graph, in the same session.
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

from runtime.engines.io import Arrays, EngineError, EngineUnavailable, batch_of
from runtime.machine.memory import give_back_freed
from vaemotion.contract.bundle import BundleError, Component

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
CUDA_OPTIONS = {
    "use_tf32": "0",  # FP32 means 32 bits
    # Not the next power of two: on a Jetson it is the processor's memory.
    "arena_extend_strategy": "kSameAsRequested",
}
NO_GRAPH = "-1"  # the graph id of a run that is neither recorded nor replayed
# After a run the memory of its intermediate results is given back, so that engines need it in turn.
SHRINK_CPU = ("memory.enable_memory_arena_shrinkage", "cpu:0")


class OnnxRuntimeEngine:
    """A component on ONNX Runtime. ``runs_on``: "cpu" or "cuda"."""

    def __init__(self, path: Path, component: Component, threads: int = 2, *, cuda: bool = False) -> None:
        """Load an ONNX file on the CPU provider, or with ``cuda`` on the CUDA provider.

        Raises EngineUnavailable where CUDA cannot be used, BundleError where the file cannot be loaded.
        """
        ort = _onnxruntime()
        self.component, self.runs_on = component, "cuda" if cuda else "cpu"
        self._outputs = [spec.name for spec in component.outputs]
        self._session: Any
        self._one: BatchOfOne | None = None
        self._run_options: Any = None
        options = _options(ort, threads, component.precision)
        if not cuda:
            self._session = _cpu_session(ort, path, component, options)
            give_back_freed()  # of the file, which may be as much as the weights
            self._run_options = ort.RunOptions()
            self._run_options.add_run_config_entry(*SHRINK_CPU)
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
            except Exception as error:  # a model that cannot be recorded runs without a graph
                without_graph = " ".join(str(error).split())
        self.announcement = f"{component.label}: ONNX Runtime {ort.__version__} on CUDA"
        if without_graph:
            self.announcement += f", without a CUDA graph ({without_graph})"

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one inference at any batch size. Raises EngineError naming an input that does not fit."""
        batch = batch_of(self.component, arrays)
        if batch == 1 and self._one is not None:
            return self._one.run(arrays)
        fed = {spec.name: arrays[spec.name] for spec in self.component.inputs}
        values = self._session.run(self._outputs, fed, self._run_options)
        return dict(zip(self._outputs, values, strict=True))


class BatchOfOne:
    """Inputs and outputs of a batch of one at fixed addresses, over which a CUDA graph is recorded."""

    def __init__(self, ort: Any, session: Any, component: Component, device: str) -> None:
        """Allocate the memory and record the graph. ``device``: "cuda", or "cpu" for a test."""
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
        session.run_with_iobinding(self._binding)  # the first run records the graph

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one inference with a batch of one, whose inputs were checked before."""
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
        raise EngineError(f"{component.label}: ONNX Runtime chose {', '.join(got)} instead of {CPU}")
    return session


def _cuda_session(ort: Any, path: Path, options: Any) -> tuple[Any, str]:
    """Open a session with CUDA graphs and return it with "", or one without graphs and the reason."""
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
    """Return the loader's reason for which the CUDA provider is missing."""
    libraries = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return "its libraries are installed; is there a GPU?"


def preload_cuda(ort: Any) -> None:
    """Load CUDA and cuDNN from their pip packages, where the loader does not search."""
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
    ort.set_default_logger_severity(4)  # errors of providers are in our own messages
    return ort


def _options(ort: Any, threads: int, precision: str) -> Any:
    options = ort.SessionOptions()
    if precision in ("fp16", "int8"):
        # ONNX Runtime 1.32 crashes on float16 convolutions when it changes their layout.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A pattern keeps a second block of memory for every batch size that was run.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the LLM needs the cores
    return options
