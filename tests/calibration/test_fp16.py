"""FP16 graphs from every supported release of ONNX Runtime's converter."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from calibration.fp16 import drop_repeated_casts


def test_a_weight_that_two_nodes_keep_in_fp32_is_cast_once() -> None:
    """Drop the second cast of the same name that ONNX Runtime 1.31 writes; no runtime loads two."""
    cast = helper.make_node("Cast", ["weight"], ["weight_cast_to_fp32"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [
            cast,
            cast,
            helper.make_node("Mul", ["x", "weight_cast_to_fp32"], ["y"]),
            helper.make_node("Add", ["y", "weight_cast_to_fp32"], ["z"]),
        ],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        [helper.make_tensor("weight", TensorProto.FLOAT16, [2], [1.0, 2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    drop_repeated_casts(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Mul", "Add"]
