"""Engines: one ``run(arrays) -> arrays`` over whatever executes an ONNX component on this machine.

The choice is made once, at start, and announced with its reason. What was asked for is compared with what ONNX Runtime
really uses: it lists providers that cannot run and falls back in silence.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vaemotion.contract.bundle import BundleError, Component, Manifest, TensorSpec, component_path
from vaemotion.contract.errors import UserError

Arrays = Mapping[str, npt.NDArray[Any]]


class EngineError(UserError):
    """An engine cannot be made or was given what it does not take."""


class Engine(Protocol):
    """Arrays by name in, arrays by name out; shapes as in the component's I/O contract."""

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]: ...


class OnnxRuntimeEngine:
    """A component on ONNX Runtime's CPU provider."""

    def __init__(self, path: Path, component: Component, threads: int = 2) -> None:
        try:
            ort: Any = importlib.import_module("onnxruntime")  # it ships no types
        except ImportError as error:
            raise EngineError(
                "onnxruntime is not installed; install the extra: pip install 'vaemotion[cpu]'"
            ) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the LLM needs the cores
        wanted = ["CPUExecutionProvider"]
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime raises its own types, all of them derived from Exception
            raise BundleError(f"{component.label}: ONNX Runtime cannot load {path.name}: {error}") from error
        if self._session.get_providers() != wanted:
            raise EngineError(
                f"{component.label}: asked for {wanted}, ONNX Runtime chose {self._session.get_providers()}"
            )
        self.component = component
        self.announcement = f"{component.label}: ONNX Runtime {ort.__version__} on the CPU, {threads} threads"
        self._outputs = [spec.name for spec in component.outputs]

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """One inference. Raises EngineError that names the input that does not fit."""
        for spec in self.component.inputs:
            check_input(self.component.label, spec, arrays)
        values = self._session.run(
            self._outputs, {spec.name: arrays[spec.name] for spec in self.component.inputs}
        )
        return dict(zip(self._outputs, values, strict=True))


def check_input(label: str, spec: TensorSpec, arrays: Arrays) -> None:
    """Name, dtype and every fixed dimension of one input."""
    if spec.name not in arrays:
        raise EngineError(f"{label}: input {spec.name!r} is missing, got {sorted(arrays)}")
    array = arrays[spec.name]
    fits = array.ndim == len(spec.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(spec.dtype):
        raise EngineError(
            f"{label}: input {spec.name!r} must be {spec.dtype} {spec.shape}, got {array.dtype} {array.shape}"
        )


def open_engine(folder: Path, manifest: Manifest, role: str, threads: int = 2) -> OnnxRuntimeEngine:
    """The engine of a role, from the bundle's first listed precision of it."""
    component = manifest.component(role)
    return OnnxRuntimeEngine(component_path(folder, component), component, threads)
