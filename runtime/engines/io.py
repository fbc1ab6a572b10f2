"""The engines' common protocol, the check of their inputs, and their errors.

In and out of an engine: arrays by name, as the component's I/O contract in the manifest says.
``runtime.engines.open`` chooses the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vaemotion.contract.bundle import Component, TensorSpec
from vaemotion.contract.errors import UserError

Arrays = Mapping[str, npt.NDArray[Any]]


class EngineError(UserError):
    """An engine cannot be opened, or its input does not fit."""


class EngineUnavailable(EngineError):
    """This machine cannot run an engine, for the reason in the message; the next engine is tried."""


class Engine(Protocol):
    """An executable component."""

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one inference, with names and shapes as in the component's I/O contract."""
        ...


class OpenedEngine(Engine, Protocol):
    """A bundle's engine on this machine.

    ``runs_on``: "tensorrt", "cuda" or "cpu"; ``announcement``: one line with component, engine and
    device, and the reasons that a faster engine was not taken.
    """

    component: Component
    runs_on: str
    announcement: str


def check_input(label: str, spec: TensorSpec, arrays: Arrays) -> None:
    """Check name, dtype and fixed dimensions of one input. Raises EngineError."""
    if spec.name not in arrays:
        raise EngineError(
            f"{label}: input {spec.name!r} is missing, got {', '.join(sorted(arrays)) or 'none'}"
        )
    array = arrays[spec.name]
    fits = array.ndim == len(spec.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(spec.dtype):
        expected, got = f"{spec.dtype} {_shape(spec.shape)}", f"{array.dtype} {_shape(array.shape)}"
        raise EngineError(f"{label}: input {spec.name!r} must be {expected}, got {got}")


def batch_of(component: Component, arrays: Arrays) -> int:
    """Check all inputs against the contract and return their batch size. Raises EngineError."""
    for spec in component.inputs:
        check_input(component.label, spec, arrays)
    sizes = {spec.name: len(arrays[spec.name]) for spec in component.inputs}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        got = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise EngineError(f"{component.label}: inputs must have one batch size of at least 1, got {got}")
    return next(iter(sizes.values()))


def _shape(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
