"""Comparison of an engine with a bundle's golden vectors, and the differences that are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.engines.io import OpenedEngine
from vaemotion.contract.bundle import Component, Manifest

Array = npt.NDArray[Any]
# Largest differences allowed, each relative to the largest magnitude of the reference where that exceeds 1.
# Whitening multiplies rounding errors by the inverse of a token's smallest deviation: measured 1.01e-4 on the
# shipped adapter, 7e-5 before it had features. INT8 is judged end to end at export; its tolerance here only
# tells a broken engine from a coarse one. A GPU's kernels round FP16 tensors elsewhere: measured up to 2.4e-3
# on an H200, against 9e-4 on a processor (docs/gpu.md).
ENGINE_TOLERANCE = {"fp32": 3e-4, "fp16": 0.05, "int8": 0.5, "int8-cpu": 0.5}
GPU_TOLERANCE = {"fp32": 3e-4, "fp16": 1e-2, "int8": 0.5}
LOGIT_TOLERANCE = {"F16": 0.08, "Q8_0": 0.5, "Q5_0": 4.0, "Q4_K_M": 8.0}  # absolute, in logits
# A device may differ from the golden vectors by twice the difference measured at export, and always by this
# much, because other processors sum in another order. Relative (engines); in logits (language model).
SMALLEST_TOLERANCE, SMALLEST_LOGIT_TOLERANCE = 1e-4, 0.03


def golden_differences(engine: OpenedEngine, golden: Mapping[str, Array]) -> dict[str, float]:
    """Return the largest relative difference to each golden output of an engine, by the output's name.

    All rows are run in one batch, then the first alone, which takes another path on a GPU.
    """
    role = engine.component.role
    worst = {spec.name: 0.0 for spec in engine.component.outputs}
    for rows in (slice(None), slice(1)):
        inputs = {spec.name: golden[f"{role}/in/{spec.name}"][rows] for spec in engine.component.inputs}
        for name, output in engine.run(inputs).items():
            worst[name] = max(worst[name], relative_difference(golden[f"{role}/out/{name}"][rows], output)[0])
    return worst


def allowed_difference(engine: OpenedEngine, manifest: Manifest) -> float:
    """Return the allowed difference of an engine from its golden vectors.

    On a GPU it is at least ``GPU_TOLERANCE``, because the export measured on a processor.
    """
    allowed = measured_tolerance(manifest, engine.component)
    return allowed if engine.runs_on == "cpu" else max(allowed, GPU_TOLERANCE[engine.component.precision])


def measured_tolerance(manifest: Manifest, component: Component) -> float:
    """Return the tolerance that the manifest states for a component, or the default."""
    return manifest.tolerances.get(f"{component.role}/{component.precision}", default_tolerance(component))


def default_tolerance(component: Component) -> float:
    """Return the allowed difference of a component for which nothing was measured."""
    table = LOGIT_TOLERANCE if component.role == "language_model" else ENGINE_TOLERANCE
    return table[component.precision]


def relative_difference(expected: Array, got: Array) -> tuple[float, float]:
    """Return the largest and the mean absolute difference, relative to the largest magnitude expected.

    They are divided by that magnitude where it exceeds 1. NaN counts as infinite.
    """
    difference = np.abs(expected.astype(np.float64) - got) / max(1.0, float(np.abs(expected).max()))
    finite = bool(np.isfinite(difference).all())
    return (float(difference.max()), float(difference.mean())) if finite else (float("inf"), float("inf"))
