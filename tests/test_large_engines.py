"""Engines whose weights one file cannot hold: exported, verified and run with a file beside the graph.

The limit is lowered, so that small engines exceed it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_file import load_graph, save_graph
from export.options import Options
from export.pack import export_bundle
from runtime.commands.timeline.read import read_timeline
from runtime.perception.predictor import open_predictor
from tests.media import write_work
from tests.quick_export import fit_confidence_on_few_works
from vaemotion.cli.main import main
from vaemotion.contract.bundle import ENGINE_ROLES, MANIFEST_FILE, BundleError, read_manifest, verify_files
from vaemotion.contract.onnx_weights import DATA_SUFFIX, data_file, external_files, graph_bytes

LIMIT = 20_000  # bytes


def product(rng: np.random.Generator) -> onnx.ModelProto:
    """Make y = x · w + b, with a weight of 4,096 bytes and one of 64."""
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((64, 16), (16,))]
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 64), ("y", 16))
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])]
    initializers = [numpy_helper.from_array(a, name) for a, name in zip(weights, "wb", strict=True)]
    graph = helper.make_graph(nodes, "product", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_graph_is_the_same_with_its_weights_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = product(np.random.default_rng(0))
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    whole = model.SerializeToString()
    save_graph(model, inside)
    assert not data_file(inside).exists()
    assert external_files(inside) == set()
    monkeypatch.setattr("calibration.onnx_file.OUTSIDE_BYTES", 4096)
    save_graph(model, outside)
    assert data_file(outside).stat().st_size == 4096
    assert external_files(outside) == {data_file(outside).name}
    assert graph_bytes(outside) == outside.stat().st_size + 4096
    # Neither writing nor reading changes the graph, but for the hash of the weights, without which two graphs
    # with other weights would be the same file.
    (tmp_path / "second name").hardlink_to(data_file(outside))  # as in the store of an export's steps
    read = load_graph(outside)
    assert [entry.key for entry in read.metadata_props] == ["data_sha256"]
    first = outside.read_bytes()
    save_graph(product(np.random.default_rng(1)), outside)
    assert outside.read_bytes() != first
    del model.metadata_props[:]
    assert model.SerializeToString() == whole
    for ours, theirs in zip(model.graph.initializer, read.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    save_graph(model, outside)
    x = np.ones((3, 64), np.float32)
    results = [
        ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for file in (inside, outside)
    ]
    np.testing.assert_array_equal(*results)
    monkeypatch.undo()
    save_graph(load_graph(outside), outside)
    assert not data_file(outside).exists()  # it fits again
    assert outside.read_bytes() == inside.read_bytes()


def test_references_in_every_part_of_a_file_are_found(tmp_path: Path) -> None:
    def elsewhere(name: str) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{name}.bin")
        tensor.external_data.add(key="offset", value="0")
        return tensor

    model = product(np.random.default_rng(0))
    branch = helper.make_graph([], "branch", [], [], [elsewhere("branch")])
    model.graph.initializer.append(elsewhere("initializer"))
    model.graph.sparse_initializer.add().values.CopyFrom(elsewhere("sparse"))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=elsewhere("constant")))
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch))
    model.functions.add().node.append(helper.make_node("Constant", [], ["e"], value=elsewhere("function")))
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    names = ("branch", "initializer", "sparse", "constant", "function")
    assert external_files(file) == {f"{name}.bin" for name in names}


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x3a\x7fabc", b"no graph"])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"it |a (field|number) of it"):
        external_files(tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def large_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        fit_confidence_on_few_works(patch)
        patch.setattr("calibration.onnx_file.OUTSIDE_BYTES", LIMIT)
        patch.setenv(
            "VAEMOTION_EXPORT_STEPS", str(folder / "steps")
        )  # the others have them with weights inside
        export_bundle(small_checkpoint, folder / "bundle", Options("fp16", calibration_windows=16, clips=2))
        before = {path: path.stat().st_mtime_ns for path in (folder / "steps" / "files").iterdir()}
        export_bundle(small_checkpoint, folder / "again", Options("fp16", calibration_windows=16, clips=2))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # the second one found every step
    first, second = (read_manifest(folder / name) for name in ("bundle", "again"))
    assert first.components == second.components
    return folder / "bundle"


def test_the_bundle_lists_the_weights_and_is_verified_and_run(
    large_bundle: Path, small_bundle: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(large_bundle)
    assert manifest.verified
    outside = {c.label for c in manifest.components if c.data_sha256}
    assert {"vision_encoder (fp32)", "emo_adapter (fp16)"} <= outside
    files = {name for component in manifest.components for name in component.files}
    assert {path.relative_to(large_bundle).as_posix() for path in large_bundle.rglob("*.*")} == {
        *files,
        MANIFEST_FILE,
    }
    for component in manifest.components:
        assert component.bytes == sum((large_bundle / name).stat().st_size for name in component.files)
    assert main(["verify", str(large_bundle), "--against", str(small_checkpoint), "--clips", "1"]) == 0
    clip = write_work(tmp_path / "clip.mkv", 1.0)
    read: list[object] = []
    for bundle in (large_bundle, small_bundle):
        timeline = tmp_path / f"{bundle.name}.jsonl"
        words = ["run", str(bundle), str(clip), "--pace", "max", "--narrate-every", "0"]
        assert main([*words, "--out", f"jsonl:{timeline}"]) == 0
        read.append([(r.valence, r.arousal, r.emotions) for r in read_timeline(timeline).readings])
    assert read[0] == read[1]
    assert read[0]


def unlisted(bundle: Path) -> str:
    file = bundle / MANIFEST_FILE
    values = json.loads(file.read_text())
    for entry in values["components"]:
        if entry["role"] == ENGINE_ROLES[0] and entry["precision"] == "fp32":
            entry["bytes"] -= entry["data_bytes"]
            entry["data_sha256"], entry["data_bytes"] = "", 0
    file.write_text(json.dumps(values))
    return "reads weights from 'vision_encoder.fp32.onnx.data', which the manifest does not list"


def missing(bundle: Path) -> str:
    (weights(bundle)).unlink()
    return "vision_encoder.fp32.onnx.data is missing"


def damaged(bundle: Path) -> str:
    content = bytearray(weights(bundle).read_bytes())
    content[100] ^= 1
    weights(bundle).unlink()
    weights(bundle).write_bytes(content)
    return "vision_encoder.fp32.onnx.data is damaged"


def weights(bundle: Path) -> Path:
    return bundle / "components" / f"vision_encoder.fp32.onnx{DATA_SUFFIX}"


@pytest.mark.parametrize("change", [unlisted, missing, damaged])
def test_weights_that_the_manifest_does_not_vouch_for_are_refused(
    large_bundle: Path, tmp_path: Path, change: Callable[[Path], str]
) -> None:
    bundle = Path(shutil.copytree(large_bundle, tmp_path / "bundle"))
    sentence = change(bundle)
    with pytest.raises(BundleError, match=sentence), open_predictor(bundle):
        pass
    with pytest.raises(BundleError, match=sentence):
        verify_files(bundle, read_manifest(bundle))
