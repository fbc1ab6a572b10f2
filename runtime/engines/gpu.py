"""This machine's GPU and TensorRT as their libraries describe them, or the reason that there is none.

CUDA is asked before any other library of NVIDIA's runs, because without a GPU the deserialization of a
TensorRT engine ends the process.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from runtime.engines.io import EngineError, EngineUnavailable
from runtime.machine.facts import read_memory

# The packages of JetPack and of NVIDIA's own index are called tensorrt; the bindings alone differ.
TENSORRT_MODULES = ("tensorrt", "tensorrt_bindings")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU. ``compute_capability``: e.g. "8.7"; versions as CUDA counts them, 13020 is 13.2."""

    name: str
    compute_capability: str
    cuda_runtime_version: int
    driver_version: int


def tensorrt_is_installed() -> bool:
    """Return True when a Python module of TensorRT is installed; nothing is loaded."""
    return any(find_spec(name) is not None for name in TENSORRT_MODULES)


def load_tensorrt() -> Any:
    """Import TensorRT's Python module. Raises EngineUnavailable."""
    installed = [name for name in TENSORRT_MODULES if find_spec(name) is not None]
    if not installed:
        raise EngineUnavailable("tensorrt is not installed")
    try:
        return importlib.import_module(installed[0])
    except Exception as error:  # a missing libnvinfer gives ImportError, another version's any error
        raise EngineUnavailable(f"tensorrt is installed but cannot be loaded ({error})") from error


def load_cudart() -> Any:
    """Import CUDA's runtime API. Raises EngineUnavailable."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except Exception as error:  # not installed, or one of its libraries is missing
        reason = "cuda-python is not installed (pip install 'vaemotion[tensorrt]')"
        if not isinstance(error, ModuleNotFoundError):
            reason = f"cuda-python cannot be loaded ({error})"
        raise EngineUnavailable(reason) from error


def call(cudart: Any, result: tuple[Any, ...], what: str) -> Any:
    """Return the value of a CUDA call from its (status, value) pair. Raises EngineError naming the call."""
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        raise EngineError(f"{what} failed: {_error_text(cudart, status)}")
    return values[0] if values else None


def _error_text(cudart: Any, status: Any) -> str:
    _, text = cudart.cudaGetErrorString(status)
    return text.decode() if isinstance(text, bytes) else str(text)


def find_gpu(cudart: Any) -> Gpu:
    """Describe the first CUDA device. Raises EngineUnavailable."""
    try:
        devices = call(cudart, cudart.cudaGetDeviceCount(), "cudaGetDeviceCount")
        if not devices:
            raise EngineError("cudaGetDeviceCount found 0 devices")
        properties = call(cudart, cudart.cudaGetDeviceProperties(0), "cudaGetDeviceProperties")
        runtime_version = call(cudart, cudart.cudaRuntimeGetVersion(), "cudaRuntimeGetVersion")
        driver_version = call(cudart, cudart.cudaDriverGetVersion(), "cudaDriverGetVersion")
    except Exception as error:  # cuda-python raises RuntimeError where the driver's library lacks a function
        raise EngineUnavailable(f"no CUDA GPU: {error}") from error
    name = properties.name
    return Gpu(
        name.decode() if isinstance(name, bytes) else str(name),
        f"{properties.major}.{properties.minor}",
        int(runtime_version),
        int(driver_version),
    )


def free_device_bytes(cudart: Any) -> int:
    """Return the memory that can be allocated on the GPU now.

    On a Jetson it is the processor's memory, of which CUDA counts the page cache as used.
    """
    result = cudart.cudaMemGetInfo()
    call(cudart, result, "cudaMemGetInfo")
    free_bytes = int(result[1])
    properties = call(cudart, cudart.cudaGetDeviceProperties(0), "cudaGetDeviceProperties")
    return max(free_bytes, read_memory().available_bytes) if properties.integrated else free_bytes
