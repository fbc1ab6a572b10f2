"""Comparison of engines and language models with golden vectors, and the differences that are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.engines.io import OpenedEngine
from vaemotion.contract.bundle import Component, Manifest

Array = npt.NDArray[Any]
# Largest differences allowed of engines, see `relative_difference`.
# Whitening multiplies rounding errors by the inverse of a token's smallest deviation: measured 1.01e-4 on the
# shipped adapter, 7e-5 before it had features. INT8 is judged end to end at export; its tolerance here only
# tells a broken engine from a coarse one. A GPU's kernels round FP16 tensors elsewhere: measured up to 2.4e-3
# on an H200, against 9e-4 on a processor (docs/gpu.md).
ENGINE_TOLERANCE = {"fp32": 3e-4, "fp16": 0.05, "int8": 0.5, "int8-cpu": 0.5}
GPU_TOLERANCE = {"fp32": 3e-4, "fp16": 1e-2, "int8": 0.5}
WIDE = 16  # numbers of a row, from which on they are a token and not quantities
_SMALLEST_MAGNITUDE = 1e-3  # of tokens
# Logits are judged by `logit_error`, relative to their own spread, of which 1 % costs 4e-4 nats a token.
# Measured on SmolLM2-135M-Instruct: F16 0.07 %, Q8_0 3.7 %, Q4_K_M 14 % (docs/verification.md). How much
# quantization may cost is judged by divergence at export; its tolerance here tells a broken file, which has
# 100 % or more, from a coarse one.
LOGIT_TOLERANCE, QUANTIZED_LOGIT_TOLERANCE = 0.01, 0.5
_FLOAT_TYPES = ("F32", "F16", "BF16")  # of language models
# A device may differ from the golden vectors by twice the difference measured at export, and always by this
# much, because other processors sum in another order. Both are relative.
SMALLEST_TOLERANCE, SMALLEST_LOGIT_TOLERANCE = 1e-4, 0.01


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
    """Return the tolerance that the manifest states for an engine, or the default."""
    return manifest.tolerances.get(component_key(component), ENGINE_TOLERANCE[component.precision])


def component_key(component: Component) -> str:
    """Return "role/precision", the name of a component in comparisons and tolerances."""
    return f"{component.role}/{component.precision}"


# --- language models ---------------------------------------------------------------------------------------


def logit_key(component: str) -> str:
    """Return the name of a language model's tolerance, in shares of the logits' spread.

    ``component``: its `component_key`, under which older manifests have a tolerance in logits.
    """
    return f"{component}/spread"


def is_quantized(precision: str) -> bool:
    """Return True for a GGUF type that is coarser than floating point, such as "Q8_0"."""
    return precision not in _FLOAT_TYPES


def logit_tolerance(precision: str) -> float:
    """Return the allowed `logit_error` of a GGUF type for which nothing was measured."""
    return QUANTIZED_LOGIT_TOLERANCE if is_quantized(precision) else LOGIT_TOLERANCE


def golden_logit_difference(
    manifest: Manifest, component: Component, expected: Array, got: Array
) -> tuple[float, float]:
    """Return the difference of logits (n, vocab) from golden ones, and the allowed difference.

    Both are shares of the logits' spread, or logits where the manifest is of a version that measured these.
    """
    key = component_key(component)
    if key in manifest.tolerances:
        difference = float(np.abs(expected - got).max())
        return (difference if np.isfinite(difference) else float("inf")), manifest.tolerances[key]
    allowed = manifest.tolerances.get(logit_key(key), logit_tolerance(component.precision))
    return float(logit_error(expected, got).max()), allowed


def logit_error(expected: Array, got: Array) -> Array:
    """Return the root mean square error of each row of logits, relative to the expected row's spread.

    (n, vocab), (n, vocab) → (n,). The spread is the standard deviation over the vocabulary, so that models
    whose logits are large are judged like others. A constant added to a row changes no probability: it does
    not count. NaN counts as infinite.
    """
    difference = got.astype(np.float64) - expected
    spread = np.maximum(expected.std(axis=1, dtype=np.float64), np.finfo(np.float32).tiny)
    error = difference.std(axis=1) / spread
    return np.where(np.isnan(error), np.inf, error)


def relative_difference(expected: Array, got: Array) -> tuple[float, float]:
    """Return the largest and the mean absolute difference, relative to the largest magnitude expected.

    Of a narrow output, such as valence and arousal, a magnitude below 1 counts as 1: its numbers have a unit,
    and 0 is one of them. Tokens have none, and in some bases they are small. NaN counts as infinite.
    """
    smallest = 1.0 if expected.shape[-1] < WIDE else _SMALLEST_MAGNITUDE
    difference = np.abs(expected.astype(np.float64) - got) / max(smallest, float(np.abs(expected).max()))
    finite = bool(np.isfinite(difference).all())
    return (float(difference.max()), float(difference.mean())) if finite else (float("inf"), float("inf"))
