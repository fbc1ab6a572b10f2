"""TensorRT's parser and builder without a GPU, by TensorRT-RTX, which builds on the processor.

It accepts the graphs that TensorRT 11 accepts, in every precision. The engine that it builds is thrown
away: it is for other GPUs, and a GPU is needed to run it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from runtime.engines.cache import BatchProfile
from runtime.engines.tensorrt.build import MIB, Built, build

FREE_BYTES = 2048 * MIB  # of a GPU's memory; the builder on the processor does not use it


def rtx_module() -> Any:
    """Import TensorRT-RTX's Python module; skip the test where it does not exist."""
    reason = "TensorRT-RTX comes with the extra dev, on Linux x86-64"
    return pytest.importorskip("tensorrt_rtx_bindings", reason=reason)


def builds_in_tensorrt_rtx(
    onnx_path: Path, profile: BatchProfile | None = None, *, monitor: Any = None
) -> Built:
    """Build an ONNX file as the device would. Raises EngineUnavailable with TensorRT's reason."""
    rtx = rtx_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # warns that its timing cache does nothing
        return build(
            rtx, onnx_path, profile or BatchProfile(), free_bytes=FREE_BYTES, timing=b"", monitor=monitor
        )
