"""FP16 in an ONNX graph; nodes that would overflow on real inputs stay in FP32, inputs and outputs too.

In: an FP32 model (or one with INT8 blocks) and batches of real inputs. Out: a strongly typed model, with a
Cast at each border.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from calibration.ranges import with_outputs
from runtime.engines.io import Arrays

LARGEST = 65504.0 / 4  # a quarter of float16's largest, as a margin for inputs that were not seen
# Sums of squares leave float16's range long before their roots do (TensorRT issue 2564), and cost next to
# nothing.
SUMS_OF_SQUARES = ("LayerNormalization", "InstanceNormalization", "ReduceSum", "ReduceMean", "Pow", "Sqrt")


def overflowing(model: onnx.ModelProto, batches: Iterable[Arrays], threads: int = 2) -> list[str]:
    """List the nodes with an input, output or constant whose magnitude exceeds ``LARGEST`` on some batch."""
    tensors = _float_tensors(model)
    session = with_outputs(model, tensors, threads)
    largest = dict.fromkeys(tensors, 0.0)
    for batch in batches:
        for name, values in zip(tensors, session.run(tensors, dict(batch)), strict=True):
            finite = np.abs(values[np.isfinite(values)], dtype=np.float64)  # a mask's -inf becomes -65504
            largest[name] = max(largest[name], float(finite.max(initial=0.0)))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            largest[tensor.name] = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return [
        node.name
        for node in model.graph.node
        if any(largest.get(name, 0.0) > LARGEST for name in (*node.input, *node.output))
    ]


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    """List the inner tensors of type float32, by shape inference."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return [name for node in model.graph.node for name in node.output if name in floats]


def half_precision(model: onnx.ModelProto, stays_fp32: Collection[str]) -> onnx.ModelProto:
    """Return a copy of ``model`` in FP16, without the nodes in ``stays_fp32`` and the sums of squares."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    half = convert_float_to_float16(
        copied,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SUMS_OF_SQUARES],
        node_block_list=list(stays_fp32),
    )
    drop_repeated_casts(half)
    _join_fp32_neighbours(half)
    OnnxModel(half).topological_sort()  # the converter appends its casts at the end
    del half.graph.value_info[:]  # it leaves the old types there
    onnx.checker.check_model(half, full_check=True)
    return half


def drop_repeated_casts(model: onnx.ModelProto) -> None:
    """Remove all but the first of several casts that write the same tensor.

    Before 1.32, ONNX Runtime's converter adds one such cast for each node that reads a shared tensor.
    """
    first = {node.output[0]: node for node in reversed(model.graph.node)}
    kept = [node for node in model.graph.node if node.op_type != "Cast" or first[node.output[0]] is node]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _join_fp32_neighbours(model: onnx.ModelProto) -> None:
    """Remove casts to FP16 and back between two nodes that stay in FP32.

    The converter adds them; a value that overflows FP16 would not pass through.
    """
    graph = model.graph
    source = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    joined: dict[str, str] = {}
    for node in source.values():
        before = source.get(node.input[0])
        if (
            before is not None
            and _target(before) == TensorProto.FLOAT16
            and _target(node) == TensorProto.FLOAT
        ):
            joined[node.output[0]] = before.input[0]
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = joined.get(name, name)
    used = {name for node in graph.node for name in node.input} | outputs
    for name in joined.keys() & used:  # a cast that writes an output of the graph stays, from the source
        source[name].input[0] = joined[name]
    kept = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def _target(cast: onnx.NodeProto) -> int:
    return next(attribute.i for attribute in cast.attribute if attribute.name == "to")
