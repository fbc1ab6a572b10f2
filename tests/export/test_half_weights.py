"""Weights that are exact in float16 are stored so, and the same bits are computed with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.half_weights import halve_exact_weights, restore_weights, store_exact_halves
from tests.rtx import builds_in_tensorrt_rtx
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest

ROWS = 64


def graph_of(weight: np.ndarray) -> ModelProto:
    """Return y = x · w for x (batch, ROWS)."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", ROWS])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def exact(columns: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, columns)).astype(np.float16).astype(np.float32)


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_exact_weights_take_half_the_bytes_and_give_the_same_bits() -> None:
    weight, x = exact(), np.random.default_rng(1).normal(size=(3, ROWS)).astype(np.float32)
    plain, stored = graph_of(weight), graph_of(weight)
    assert halve_exact_weights(stored) == 1
    onnx.checker.check_model(stored, full_check=True)
    assert len(stored.graph.initializer[0].raw_data) * 2 == len(plain.graph.initializer[0].raw_data)
    assert np.array_equal(run(stored, x), run(plain, x))


@pytest.mark.parametrize(
    "weight",
    [
        exact() + np.float32(1e-6),
        np.full((ROWS, ROWS), 1e6, np.float32),  # beyond the largest float16
        np.full((ROWS, ROWS), 1e-9, np.float32),  # below the smallest
        np.full((ROWS, ROWS), np.nan, np.float32),
        exact(columns=1),  # so small that a node costs more
    ],
    ids=["not rounded", "too large", "too small", "nan", "few values"],
)
def test_any_other_weight_stays_as_it_is(weight: np.ndarray) -> None:
    model = graph_of(weight)
    assert halve_exact_weights(model) == 0
    assert model == graph_of(weight)


def test_later_steps_read_the_graph_as_it_was_traced(small_bundle: Path) -> None:
    """Calibration and INT8 look for float32 initializers; restoring and storing again is an identity."""
    manifest = read_manifest(small_bundle)
    halved = 0
    for role in ENGINE_ROLES:
        stored = onnx.load(str(component_path(small_bundle, manifest.component(role, "fp32"))))
        restored = restore_weights(onnx.load_from_string(stored.SerializeToString()))
        floats = {t.name for t in restored.graph.initializer if t.data_type == TensorProto.FLOAT16}
        assert not floats
        again = onnx.load_from_string(restored.SerializeToString())
        halved += halve_exact_weights(again)
        assert again == stored
    assert halved > 0  # the base and the audio pathway are rounded


def test_tensorrt_takes_a_stored_graph(tmp_path: Path) -> None:
    file = tmp_path / "product.onnx"
    onnx.save(graph_of(exact()), str(file))
    assert store_exact_halves(file) == 1
    assert builds_in_tensorrt_rtx(file).plan
