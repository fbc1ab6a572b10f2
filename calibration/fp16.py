"""FP16 in an ONNX graph; nodes that would overflow on real inputs stay in FP32, inputs and outputs too.

In: an FP32 model (or one with INT8 blocks) and batches of real inputs. Out: a strongly typed model, with a
Cast at each border.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from calibration.onnx_file import OUTSIDE_LEAST_BYTES
from calibration.ranges import session_of, with_outputs
from runtime.engines.io import Arrays

LARGEST = 65504.0 / 4  # a quarter of float16's largest, as a margin for inputs that were not seen
# Sums of squares leave float16's range long before their roots do (TensorRT issue 2564), and cost next to
# nothing.
SUMS_OF_SQUARES = ("LayerNormalization", "InstanceNormalization", "ReduceSum", "ReduceMean", "Pow", "Sqrt")
_LEAST, _MOST = "/least", "/most"  # behind a tensor's name: its extremes


def overflowing(model: onnx.ModelProto, batches: Iterable[Arrays], threads: int = 2) -> list[str]:
    """List the nodes with an input, output or constant whose magnitude exceeds ``LARGEST`` on some batch."""
    tensors = _float_tensors(model)
    session = session_of(_with_extremes(model, tensors), threads, in_order=True)
    outputs = [f"{name}{end}" for name in tensors for end in (_LEAST, _MOST)]
    largest, masked = dict.fromkeys(tensors, 0.0), dict[str, float]()
    kept: list[Arrays] = []
    for batch in batches:
        kept.append(batch)
        extremes = np.abs(np.array(session.run(outputs, dict(batch)), np.float64)).reshape(-1, 2).max(1)
        for name, value in zip(tensors, extremes.tolist(), strict=True):
            if math.isfinite(value):
                largest[name] = max(largest[name], value)
            else:
                masked[name] = 0.0
    del session
    if masked:  # a mask's -inf becomes -65504: only what is finite counts
        session = with_outputs(model, list(masked), threads)
        for batch in kept:
            for name, values in zip(masked, session.run(list(masked), dict(batch)), strict=True):
                finite = np.abs(values[np.isfinite(values)])
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


def _with_extremes(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return a copy that gives the smallest and the largest value of each tensor, and no tensor.

    They stand behind the node that makes the tensor, so that it need not be kept until the end.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph, wanted = copied.graph, set(tensors)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        for name in wanted.intersection(node.output):
            nodes.append(helper.make_node("ReduceMin", [name], [f"{name}{_LEAST}"], keepdims=0))
            nodes.append(helper.make_node("ReduceMax", [name], [f"{name}{_MOST}"], keepdims=0))
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(
        helper.make_tensor_value_info(f"{name}{end}", TensorProto.FLOAT, [])
        for name in tensors
        for end in (_LEAST, _MOST)
    )
    return copied


def half_precision(model: onnx.ModelProto, stays_fp32: Collection[str]) -> onnx.ModelProto:
    """Return a copy of ``model`` in FP16, without the nodes in ``stays_fp32`` and the sums of squares."""
    half = convert_float_to_float16(
        _with_shapes(model),
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SUMS_OF_SQUARES],
        node_block_list=list(stays_fp32),
    )
    drop_repeated_casts(half)
    _join_fp32_neighbours(half)
    OnnxModel(half).topological_sort()  # the converter appends its casts at the end
    del half.graph.value_info[:]  # it leaves the old types there
    onnx.checker.check_model(half, full_check=True)
    return half


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the shape of every tensor.

    Large weights, whose values say no shape, are left out meanwhile: shape inference takes one message.
    """
    copied, values = onnx.ModelProto(), dict[str, bytes]()
    copied.CopyFrom(model)
    for tensor in copied.graph.initializer:
        if len(tensor.raw_data) >= OUTSIDE_LEAST_BYTES:
            values[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(copied)
    for tensor in inferred.graph.initializer:
        if tensor.name in values:
            tensor.raw_data = values.pop(tensor.name)
    return inferred


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
