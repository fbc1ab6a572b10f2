"""What every engine shares: the protocol, the check of what goes in, and the errors.

In and out of an engine: arrays by name, as the component's I/O contract in the manifest says. ``runtime.engines`` chooses one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vaemotion.contract.bundle import Component, TensorSpec
from vaemotion.contract.errors import UserError

Arrays = Mapping[str, npt.NDArray[Any]]


class EngineError(UserError):
    """An engine cannot be made or was given what it does not take."""


class EngineUnavailable(EngineError):
    """This machine cannot run an engine; the message is the reason, and the next engine in the order is tried."""


class Engine(Protocol):
    """Arrays by name in, arrays by name out; shapes as in the component's I/O contract."""

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]: ...


class OpenedEngine(Engine, Protocol):
    """A bundle's engine on this machine. ``runs_on``: "tensorrt", "cuda" or "cpu"; ``announcement``: what runs, on what, and why not on
    something faster."""

    component: Component
    runs_on: str
    announcement: str


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


def batch_of(component: Component, arrays: Arrays) -> int:
    """The inputs' common batch size, every one of them checked against the contract."""
    for spec in component.inputs:
        check_input(component.label, spec, arrays)
    sizes = {spec.name: len(arrays[spec.name]) for spec in component.inputs}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise EngineError(f"{component.label}: inputs must have one batch size of at least 1, got {sizes}")
    return next(iter(sizes.values()))
