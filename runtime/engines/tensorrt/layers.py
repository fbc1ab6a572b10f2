"""The layers of a built TensorRT engine, with the precision in which each computes.

In: the inspector's JSON, of TensorRT 10 ("Format/Datatype") or 11 ("DataType"). Out: one record per
layer, and the matrix products that run in INT8. Q/DQ nodes in a graph do not guarantee INT8: TensorRT may
fuse them away and compute in FP16 or FP32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Names of kernels and layers that multiply matrices; those that move, scale or convert are not counted.
_MATRIX = re.compile(
    r"gemm|conv(?!ert)|mat_?mul|matrixmultiply|fully_?connected|mha|_fc|fccast", re.IGNORECASE
)
_NOT_MATRIX = ("Reformat", "Constant", "NoOp", "Shuffle", "Slice", "Copy")
_INT8_KERNEL = re.compile(r"i8i8|int8_|s8s8", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    ``nodes``: the ONNX nodes that it comprises; ``is_matrix``: it multiplies matrices; ``int8``: in INT8.
    """

    name: str
    kind: str
    tactic: str
    nodes: tuple[str, ...]
    input_types: tuple[str, ...]
    is_matrix: bool
    int8: bool


@dataclass(frozen=True)
class Int8Report:
    """Names of the matrix products that run in INT8, and of the others."""

    int8: tuple[str, ...]
    other: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of INT8 among the matrix products, 0 to 1; 0 where there are none."""
        total = len(self.int8) + len(self.other)
        return len(self.int8) / total if total else 0.0

    def sentence(self) -> str:
        """Say how many matrix products run in INT8."""
        total = len(self.int8) + len(self.other)
        return f"{len(self.int8)} of {total} matrix products run in INT8"


def layers_of(inspector_json: str) -> tuple[Layer, ...]:
    """Parse the layers of an engine that was built with ``ProfilingVerbosity.DETAILED``."""
    entries: list[Any] = json.loads(inspector_json)["Layers"]
    return tuple(_layer(entry) for entry in entries)


def int8_report(layers: Sequence[Layer]) -> Int8Report:
    """Sort an engine's matrix products by whether they run in INT8."""
    matrix = [layer for layer in layers if layer.is_matrix]
    return Int8Report(
        tuple(layer.name for layer in matrix if layer.int8),
        tuple(layer.name for layer in matrix if not layer.int8),
    )


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):  # built without details: only the name is known
        return Layer(entry, "", "", (), (), False, False)
    kind, tactic = str(entry.get("LayerType", "")), str(entry.get("TacticName", ""))
    details: Any = entry.get("Weights")
    weights = str(details.get("Type", "")) if details else ""
    inputs = tuple(_type_of(tensor) for tensor in entry.get("Inputs") or ())
    name = str(entry.get("Name", ""))
    is_matrix = kind not in _NOT_MATRIX and _MATRIX.search(f"{kind} {tactic} {name}") is not None
    return Layer(
        name,
        kind,
        tactic,
        tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(entry.get("Metadata", "")))),
        inputs,
        is_matrix,
        is_matrix and _in_int8(weights, tactic, inputs),
    )


def _in_int8(weights: str, tactic: str, inputs: Sequence[str]) -> bool:
    """Decide by the kernel's name, else by the weights' type, else by the inputs' types."""
    if _INT8_KERNEL.search(tactic):
        return True
    if weights:
        return "int8" in weights.lower()
    return any("int8" in kind.lower() for kind in inputs)


def _type_of(tensor: Any) -> str:
    return str(tensor.get("DataType") or tensor.get("Format/Datatype") or "")
