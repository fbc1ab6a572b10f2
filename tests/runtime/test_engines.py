"""Engines on real ONNX files: what goes in is checked by name, what comes out has its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime.engines import EngineError, OnnxRuntimeEngine, open_engine
from vaemotion.contract.bundle import BundleError, Component, Manifest, TensorSpec, sha256_of
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import PromptTemplate


@pytest.fixture
def component(tmp_path: Path) -> Component:
    """y = x * 2 where keep, else 0; and the sum of each row."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("Cast", ["keep"], ["weight"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["twice", "weight"], ["y"]),
            helper.make_node("ReduceSum", ["y", "axis"], ["total"], keepdims=0),
        ],
        "engine",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, ["batch", 3]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch"]),
        ],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    file = tmp_path / "adapter.onnx"
    onnx.save(model, file)
    inputs = TensorSpec("x", ("batch", 3), "float32"), TensorSpec("keep", ("batch", 3), "bool")
    outputs = TensorSpec("total", ("batch",), "float32"), TensorSpec("y", ("batch", 3), "float32")
    return Component(
        "emo_adapter",
        "fp32",
        "adapter.onnx",
        sha256_of(file),
        file.stat().st_size,
        "Apache-2.0",
        inputs,
        outputs,
    )


@pytest.fixture
def engine(tmp_path: Path, component: Component) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(tmp_path / component.path, component, threads=1)


def arrays(batch: int = 2) -> dict[str, np.ndarray]:
    x = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
    return {"x": x, "keep": x % 2 == 0}


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_outputs_come_by_their_own_names_at_any_batch(engine: OnnxRuntimeEngine, batch: int) -> None:
    given = arrays(batch)
    out = engine.run(given)
    expected = np.where(given["keep"], 2 * given["x"], 0)
    assert list(out) == ["total", "y"]  # in the order of the contract, not of the file
    np.testing.assert_array_equal(out["y"], expected)
    np.testing.assert_array_equal(out["total"], expected.sum(1))


@pytest.mark.parametrize(
    ("name", "array", "named"),
    [
        ("x", np.zeros((2, 4), np.float32), r"'x' must be float32 \('batch', 3\), got float32 \(2, 4\)"),
        ("x", np.zeros((2, 3)), r"'x' must be float32 .*, got float64 \(2, 3\)"),
        ("x", np.zeros(3, np.float32), r"'x' .*got float32 \(3,\)"),
        ("x", np.zeros((1, 2, 3), np.float32), r"'x' .*got float32 \(1, 2, 3\)"),
        ("keep", np.zeros((2, 3), np.uint8), r"'keep' must be bool .*, got uint8 \(2, 3\)"),
    ],
)
def test_an_input_that_does_not_fit_is_named_with_what_was_expected(
    engine: OnnxRuntimeEngine, name: str, array: np.ndarray, named: str
) -> None:
    with pytest.raises(EngineError, match=rf"emo_adapter \(fp32\): input {named}"):
        engine.run({**arrays(), name: array})


def test_a_missing_input_is_named_with_what_came(engine: OnnxRuntimeEngine) -> None:
    with pytest.raises(EngineError, match=r"input 'keep' is missing, got \['x'\]"):
        engine.run({"x": arrays()["x"]})


def test_the_choice_is_announced_and_is_what_runs(engine: OnnxRuntimeEngine) -> None:
    assert engine.announcement.startswith("emo_adapter (fp32): ONNX Runtime ")
    assert "on the CPU, 1 threads" in engine.announcement
    assert engine._session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("content", [b"", b"not an engine", None])
def test_a_file_that_is_no_engine_is_refused_by_its_name(
    tmp_path: Path, component: Component, content: bytes | None
) -> None:
    file = tmp_path / component.path
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    with pytest.raises(BundleError, match=r"emo_adapter \(fp32\): ONNX Runtime cannot load adapter.onnx"):
        OnnxRuntimeEngine(file, component)


def test_a_bundles_engine_is_the_first_listed_precision_of_its_role(
    tmp_path: Path, component: Component
) -> None:
    manifest = Manifest(
        "m", 64, 4, 5, (4,), FrontEnd(), PromptTemplate(), (component, replace(component, precision="int8", path="none.onnx")),
        {}, {}, {},
    )  # fmt: skip
    engine = open_engine(tmp_path, manifest, "emo_adapter", threads=1)
    assert engine.component is component
    with pytest.raises(BundleError, match="no vision_encoder"):
        open_engine(tmp_path, manifest, "vision_encoder")
