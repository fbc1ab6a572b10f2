"""Weights of an FP32 graph that are exact in float16, stored in half the bytes.

The base and the audio pathway are rounded to float16 before stage 1 and stage 2 build on them, so their
float32 weights are float16 values. Each is stored as float16 behind a Cast, which ONNX Runtime and TensorRT
fold when they load the file: the same bits are computed with. The EmoAdapter is never rounded, and stays as
it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from calibration.onnx_file import load_graph, save_graph

LEAST_VALUES = 256  # a smaller weight costs more as a node than it saves
_SUFFIX = ".float16"


def store_exact_halves(file: Path) -> int:
    """Rewrite an ONNX file with its exact float32 weights as float16. Returns the count of such weights."""
    model = load_graph(file)
    stored = halve_exact_weights(model)
    if stored:
        save_graph(model, file)
    return stored


def halve_exact_weights(model: ModelProto) -> int:
    """Store float32 initializers that are exact in float16 as float16 with a Cast. Returns their count."""
    casts: list[Any] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if values.size < LEAST_VALUES or not np.array_equal(halves.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halves, name + _SUFFIX))
        casts.append(
            helper.make_node("Cast", [tensor.name], [name], name=f"{name}/cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return len(casts)


def load_fp32_graph(file: Path) -> ModelProto:
    """Read an FP32 graph as it was traced, with float32 initializers."""
    return restore_weights(load_graph(file))


def restore_weights(model: ModelProto) -> ModelProto:
    """Fold the Casts of ``halve_exact_weights`` again: float32 initializers, as the other steps read them."""
    names = dict(_stored(model))
    for tensor in model.graph.initializer:
        if tensor.name in names:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, names[tensor.name]))
    nodes = [node for node in model.graph.node if not (node.op_type == "Cast" and node.input[0] in names)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _stored(model: ModelProto) -> Iterator[tuple[str, str]]:
    """Yield the name of each float16 weight with the name of its float32 values."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.name.endswith(_SUFFIX)}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in weights:
            yield node.input[0], node.output[0]
