"""The device's building code on TensorRT-RTX: exported graphs build, refused graphs are named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.progress import Progress

from calibration.onnx_file import save_graph
from runtime.engines.cache import BatchProfile
from runtime.engines.io import EngineUnavailable
from runtime.engines.tensorrt.build import (
    MIB,
    WORKSPACE_FLOOR_BYTES,
    WORKSPACE_MAX_BYTES,
    first_workspace_bytes,
    next_workspace_bytes,
    progress_bars,
    progress_monitor,
)
from tests.rtx import builds_in_tensorrt_rtx, rtx_module
from vaemotion.contract.bundle import ENGINE_ROLES, component_path, read_manifest
from vaemotion.contract.onnx_weights import data_file
from vaemotion.contract.terminal import Terminal


@pytest.fixture
def exported(small_bundle: Path) -> dict[str, Path]:
    """Return the FP32 graph of each engine by role."""
    manifest = read_manifest(small_bundle)
    return {role: component_path(small_bundle, manifest.component(role, "fp32")) for role in ENGINE_ROLES}


@pytest.mark.parametrize("role", ENGINE_ROLES)
def test_every_engine_of_a_bundle_builds(exported: dict[str, Path], role: str) -> None:
    built = builds_in_tensorrt_rtx(exported[role])
    assert len(built.plan) > 100_000
    assert built.timing


def graph(
    folder: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    initializers: dict[str, np.ndarray],
    batch: object = "batch",
) -> Path:
    """Write a graph from x (batch, 4) to y (batch, 4), float32."""
    made = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array, key) for key, array in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    file = folder / f"{name}.onnx"
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), file)
    return file


def quantized(folder: Path, name: str, dtype: type) -> Path:
    """Write a MatMul with Q/DQ on its input and per-channel weights, symmetric where ``dtype`` is int8."""
    zero = 0 if dtype is np.int8 else 128
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"], name="weights", axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["y"], name="product"),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.float32(0.02),
        "zero": np.array(zero, dtype),
        "w": rng.integers(-127, 127, (4, 4)).astype(np.int8),
        "w_scale": np.full(4, 0.01, np.float32),
        "w_zero": np.zeros(4, np.int8),
    }
    return graph(folder, name, nodes, {key: np.asarray(value) for key, value in weights.items()})


def test_weights_beside_a_graph_are_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("MatMul", ["xw", "v"], ["y"])]
    file = graph(tmp_path, "beside", nodes, {"w": weight, "v": weight.T.copy()})
    monkeypatch.setattr("calibration.onnx_file.OUTSIDE_BYTES", 1024)
    save_graph(onnx.load(file), file)
    assert data_file(file).stat().st_size == 2 * weight.nbytes
    assert file.stat().st_size < weight.nbytes
    assert len(builds_in_tensorrt_rtx(file).plan) > 2 * weight.nbytes
    data_file(file).unlink()
    with pytest.raises(EngineUnavailable, match=r"does not take beside\.onnx"):
        builds_in_tensorrt_rtx(file)


def test_half_precision_inside_with_single_precision_outside_builds(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    assert builds_in_tensorrt_rtx(graph(tmp_path, "half", nodes, {"w": np.eye(4, dtype=np.float16)})).plan


def test_symmetric_quantization_builds(tmp_path: Path) -> None:
    assert builds_in_tensorrt_rtx(quantized(tmp_path, "int8", np.int8)).plan


def test_onnx_runtimes_own_quantization_is_refused_with_the_nodes_name(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"does not take uint8.onnx: node '(quantize|dequantize)'"):
        builds_in_tensorrt_rtx(quantized(tmp_path, "uint8", np.uint8))


def test_an_operator_that_is_not_supported_is_named_with_its_node(tmp_path: Path) -> None:
    nodes = [helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd", domain="com.microsoft")]
    with pytest.raises(
        EngineUnavailable, match=r"does not take foreign.onnx: node 'odd' \(NoSuchOperator\): "
    ):
        builds_in_tensorrt_rtx(graph(tmp_path, "foreign", nodes, {}))


@pytest.mark.parametrize("content", [b"", b"not an engine", None])
def test_a_file_that_is_not_a_graph_is_refused_in_one_sentence(
    tmp_path: Path, exported: dict[str, Path], content: bytes | None
) -> None:
    file = tmp_path / "torn.onnx"
    file.write_bytes(exported["emo_adapter"].read_bytes()[:-999] if content is None else content)
    with pytest.raises(EngineUnavailable, match=r"^TensorRT .*torn\.onnx") as raised:
        builds_in_tensorrt_rtx(file)
    assert "\n" not in str(raised.value)


def test_only_the_batch_may_be_free(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(EngineUnavailable, match=r"input 'x' has the shape \(3, 4\)"):
        builds_in_tensorrt_rtx(graph(tmp_path, "fixed", nodes, {}, batch=3))


def test_progress_goes_through_phases_and_leaves_no_bar(exported: dict[str, Path]) -> None:
    with progress_bars(Terminal(file=io.StringIO())) as bars:
        phases: list[str] = []
        monitor = progress_monitor(rtx_module(), bars)
        started = monitor.phase_start
        monitor.phase_start = lambda *about: (phases.append(about[0]), started(*about))
        builds_in_tensorrt_rtx(exported["audio_encoder"], monitor=monitor)
        assert "Building engine" in phases
        assert bars.tasks == []


def test_ctrl_c_ends_a_build(exported: dict[str, Path]) -> None:
    class Interrupted(Progress):
        def update(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    monitor = progress_monitor(rtx_module(), Interrupted(console=Terminal(file=io.StringIO())))
    with pytest.raises(KeyboardInterrupt):
        builds_in_tensorrt_rtx(exported["emo_adapter"], monitor=monitor)


def test_a_build_that_cannot_fit_is_not_begun() -> None:
    with pytest.raises(EngineUnavailable, match=r"needs about 364 MiB of GPU memory and 300 MiB are free"):
        first_workspace_bytes("vision.onnx", 100 * MIB, 300 * MIB)
    assert first_workspace_bytes("vision.onnx", 100 * MIB, 400 * MIB) == 100 * MIB
    assert first_workspace_bytes("vision.onnx", 100 * MIB, 80_000 * MIB) == WORKSPACE_MAX_BYTES


def test_a_build_that_lacks_memory_goes_on_with_half_the_workspace_down_to_the_floor() -> None:
    tried = [500 * MIB]
    while tried[-1] > WORKSPACE_FLOOR_BYTES:
        tried.append(next_workspace_bytes("v.onnx", tried[-1], ["out of memory"]))
    assert [size / MIB for size in tried] == [500, 250, 125, 64]
    sentence = "cannot build v.onnx with 64 MiB of workspace; close other programs: out of memory"
    with pytest.raises(EngineUnavailable, match=sentence):
        next_workspace_bytes("v.onnx", tried[-1], ["out of memory"])


def test_a_build_that_fails_for_another_reason_is_not_repeated() -> None:
    with pytest.raises(EngineUnavailable, match=r"cannot build v.onnx: no kernel$"):
        next_workspace_bytes("v.onnx", 500 * MIB, ["no kernel"])


def test_the_profile_bounds_the_batch(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    assert builds_in_tensorrt_rtx(graph(tmp_path, "relu", nodes, {}), BatchProfile(1, 4, 16)).plan
