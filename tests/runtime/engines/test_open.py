"""Engines on real ONNX files: inputs are checked and outputs returned by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from runtime.engines.fallback import FallbackEngine
from runtime.engines.onnx import BatchOfOne
from runtime.engines.open import EngineError, OnnxRuntimeEngine, open_engine
from tests.tensorrt_stub import HOME, bindings, run_python
from vaemotion.contract.bundle import BundleError, Component, Manifest, TensorSpec, sha256_of
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import PromptTemplate


def doubling(folder: Path) -> Component:
    """Write a graph: y = x * 2 where keep, else 0; and total, the sum of each row."""
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
    file = folder / "adapter.onnx"
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
def component(tmp_path: Path) -> Component:
    return doubling(tmp_path)


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


def test_a_batch_of_one_over_fixed_memory_gives_what_a_plain_run_gives(
    tmp_path: Path, component: Component
) -> None:
    """Test with the processor's memory what a CUDA graph is recorded over on a GPU."""
    session = onnxruntime.InferenceSession(tmp_path / component.path, providers=["CPUExecutionProvider"])
    one = BatchOfOne(onnxruntime, session, component, "cpu")
    first = one.run(arrays(1))
    kept = {name: array.copy() for name, array in first.items()}
    turned = {"x": np.float32([[7, 8], [9, 1], [2, 3]]).T[:1], "keep": np.array([[True, False, True]])}
    second = one.run(turned)
    np.testing.assert_array_equal(second["y"], [[14, 0, 4]])
    np.testing.assert_array_equal(second["total"], [18])
    assert list(first) == ["total", "y"]
    for name, array in first.items():  # the fixed memory was written again, the returned arrays were not
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize("sizes", [(2, 1), (1, 3), (0, 0)])
def test_inputs_of_different_or_no_batch_are_refused(
    engine: OnnxRuntimeEngine, sizes: tuple[int, int]
) -> None:
    with pytest.raises(EngineError, match=r"inputs must have one batch size of at least 1, got x: "):
        engine.run({"x": arrays(3)["x"][: sizes[0]], "keep": arrays(3)["keep"][: sizes[1]]})


@pytest.mark.parametrize(
    ("name", "array", "named"),
    [
        ("x", np.zeros((2, 4), np.float32), r"'x' must be float32 \(batch, 3\), got float32 \(2, 4\)"),
        ("x", np.zeros((2, 3)), r"'x' must be float32 .*, got float64 \(2, 3\)"),
        ("x", np.zeros(3, np.float32), r"'x' .*got float32 \(3\)"),
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
    with pytest.raises(EngineError, match=r"input 'keep' is missing, got x$"):
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


def bundle(*components: Component) -> Manifest:
    return Manifest("m", 64, 4, 5, (4,), FrontEnd(), PromptTemplate(), components, {}, {}, {})


def in_precisions(component: Component, *precisions: str) -> Manifest:
    """List the same file under several precisions, for tests of the choice."""
    return bundle(*(replace(component, precision=precision) for precision in precisions))


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        (("fp32",), "fp32"),
        (("fp32", "fp16", "int8"), "fp32"),
        (("fp32", "int8-cpu"), "int8-cpu"),
        (("int8", "int8-cpu", "fp32"), "int8-cpu"),
    ],
)
def test_a_machine_without_a_gpu_takes_the_best_that_its_processor_runs(
    tmp_path: Path, component: Component, listed: tuple[str, ...], chosen: str
) -> None:
    engine = open_engine(tmp_path, in_precisions(component, *listed), "emo_adapter", threads=1)
    assert engine.component.precision == chosen
    assert engine.announcement.startswith(f"emo_adapter ({chosen}): ONNX Runtime ")
    assert "; no GPU engine is installed" in engine.announcement
    assert engine.run(arrays())["y"].shape == (2, 3)


def test_behind_the_best_engine_stand_the_others_that_run_here(tmp_path: Path, component: Component) -> None:
    engine = open_engine(tmp_path, in_precisions(component, "fp32", "int8-cpu"), "emo_adapter", threads=1)
    assert isinstance(engine, FallbackEngine)
    assert engine.component.precision == "int8-cpu"
    assert engine.fall_back()
    assert engine.component.precision == "fp32"
    assert engine.announcement.startswith("emo_adapter (fp32): ONNX Runtime ")
    assert engine.run(arrays())["y"].shape == (2, 3)
    assert not engine.fall_back()
    assert engine.run(arrays())["y"].shape == (2, 3)


def test_an_engine_or_precision_that_was_asked_for_has_no_other_behind_it(
    tmp_path: Path, component: Component
) -> None:
    listed = in_precisions(component, "fp32", "int8-cpu")
    asked = open_engine(tmp_path, listed, "emo_adapter", threads=1, precision="int8-cpu")
    assert not isinstance(asked, FallbackEngine)
    on_cpu = open_engine(tmp_path, listed, "emo_adapter", threads=1, engine="cpu")
    assert isinstance(on_cpu, FallbackEngine)
    assert on_cpu.fall_back()
    assert (on_cpu.runs_on, on_cpu.component.precision) == ("cpu", "fp32")


def test_a_role_that_the_bundle_lacks_is_named(tmp_path: Path, component: Component) -> None:
    with pytest.raises(BundleError, match="no vision_encoder"):
        open_engine(tmp_path, bundle(component), "vision_encoder")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"precision": "fp16"}, r"the bundle has no emo_adapter in fp16"),
        ({"precision": "int8"}, r"emo_adapter \(int8\): no engine .*: tensorrt is not installed"),
        ({"engine": "tensorrt"}, r"emo_adapter: no engine .*: tensorrt is not installed"),
        ({"engine": "cuda"}, r"no engine of this machine runs it: onnxruntime has no CUDA provider"),
        ({"engine": "cpu", "precision": "int8"}, r"cpu does not run int8; it runs int8-cpu, fp32"),
        ({"engine": "gpu"}, r"the engine must be one of tensorrt, cuda, cpu, got 'gpu'"),
    ],
)
def test_a_request_is_fulfilled_or_an_error(
    tmp_path: Path, component: Component, asked: dict[str, str], sentence: str
) -> None:
    with pytest.raises((EngineError, BundleError), match=sentence):
        open_engine(tmp_path, in_precisions(component, "fp32", "int8"), "emo_adapter", **asked)


def test_a_bundle_that_nothing_here_runs_says_what_would(tmp_path: Path, component: Component) -> None:
    with pytest.raises(EngineError, match=r"tensorrt is not installed; onnxruntime has no CUDA provider"):
        open_engine(tmp_path, in_precisions(component, "fp16"), "emo_adapter")
    with pytest.raises(EngineError, match=r"the bundle has fp16; cpu runs int8-cpu, fp32"):
        open_engine(tmp_path, in_precisions(component, "fp16"), "emo_adapter", engine="cpu")


CHOOSE = """
import json, sys
from pathlib import Path
from runtime.engines.open import open_engine
from tests.runtime.engines.test_open import bundle
from vaemotion.contract.bundle import Component, TensorSpec
inputs = TensorSpec("x", ("batch", 3), "float32"), TensorSpec("keep", ("batch", 3), "bool")
outputs = (TensorSpec("y", ("batch", 3), "float32"),)
component = Component("emo_adapter", "fp32", "adapter.onnx", "", 0, "", inputs, outputs)
print(open_engine(Path(sys.argv[1]), bundle(component), "emo_adapter", threads=1).announcement)
"""


def test_tensorrt_without_a_gpu_is_left_out_with_the_reason(tmp_path: Path, component: Component) -> None:
    """TensorRT's real bindings stand over a stub library; the processor runs the engine and says why."""
    printed = run_python(CHOOSE, bindings("10.16", tmp_path / "bindings"), str(tmp_path))
    assert printed.startswith("emo_adapter (fp32): ONNX Runtime ")
    reasons = "; not on anything faster: no CUDA GPU: cudaGetDeviceCount failed: "
    assert reasons in printed
    assert printed.endswith("; onnxruntime has no CUDA provider\n")


DOCTOR = """
from runtime.commands.doctor.checks import onnxruntime_providers, tensorrt
for check in (tensorrt(), *onnxruntime_providers()): print(check.ok, check.name, check.value, sep="|")
"""


def test_the_doctor_gives_the_reason_that_a_run_would_give(tmp_path: Path) -> None:
    lines = run_python(DOCTOR, bindings("10.16", tmp_path)).splitlines()
    assert lines[0].startswith("None|TensorRT|no CUDA GPU: cudaGetDeviceCount failed: ")
    assert lines[1] == "None|ONNX Runtime CUDA|not in this build"
    assert lines[2] == "True|ONNX Runtime CPU|works; used where neither TensorRT nor CUDA is available"
    without = run_python(DOCTOR, {**os.environ, "PYTHONPATH": str(HOME)}).splitlines()
    assert without[0] == "None|TensorRT|not installed, not needed"
