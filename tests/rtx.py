"""TensorRT's parser and builder without a GPU: TensorRT-RTX builds on the processor, and takes the graphs that TensorRT 11 takes.

It answers "does TensorRT take this graph?", for every precision. The engine that it makes is thrown away: it is for other GPUs, and running
it needs one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from runtime.engine_cache import BatchProfile
from runtime.tensorrt_build import MIB, Built, build

FREE_BYTES = 2048 * MIB  # as if a GPU had so much; the builder on the processor does not ask for it


def rtx_module() -> Any:
    """TensorRT-RTX's Python module; the test is skipped where it does not exist."""
    reason = "TensorRT-RTX comes with the extra dev, on Linux x86-64"
    return pytest.importorskip("tensorrt_rtx_bindings", reason=reason)


def builds_in_tensorrt_rtx(
    onnx_path: Path, profile: BatchProfile | None = None, *, monitor: Any = None
) -> Built:
    """Build an ONNX file as the device would. Raises EngineUnavailable with TensorRT's own words where it is refused."""
    rtx = rtx_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its timing cache does nothing, and it says so
        return build(
            rtx, onnx_path, profile or BatchProfile(), free_bytes=FREE_BYTES, timing=b"", monitor=monitor
        )
