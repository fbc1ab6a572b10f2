"""``vaemotion export``: a verified bundle, or nothing under the final name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.pack import export_bundle
from export.to_onnx import ExportError
from tests.tiny import tiny_model
from vaemotion.cli import main
from vaemotion.contract.bundle import ROLES, component_path, read_manifest, sha256_of, verify_files
from vaemotion.model.checkpoint import CheckpointError, save_checkpoint


def test_the_bundle_holds_every_role_in_every_precision_and_its_files_are_whole(small_bundle: Path) -> None:
    manifest = read_manifest(small_bundle)
    verify_files(small_bundle, manifest)
    assert {c.role for c in manifest.components} == set(ROLES)
    assert [c.precision for c in manifest.components if c.role == "language_model"] == ["F16", "Q8_0"]
    listed = {c.path for c in manifest.components}
    on_disk = {p.relative_to(small_bundle).as_posix() for p in (small_bundle / "components").iterdir()}
    assert listed == on_disk


def test_lineage_licences_cost_and_verification_are_written_down(
    small_bundle: Path, small_checkpoint: Path
) -> None:
    manifest = read_manifest(small_bundle)
    assert manifest.lineage["checkpoint_config_sha256"] == sha256_of(small_checkpoint / "config.json")
    assert manifest.lineage["tools"]["torch"].startswith(torch.__version__)
    assert manifest.lineage["export_peak_memory_mb"] > 100
    assert manifest.lineage["export_s"] > 0
    assert {c.licence for c in manifest.components} == {"Apache-2.0"}
    edges = manifest.verification["edges"]
    assert {e["kind"] for e in edges} == {"golden", "engine", "logits", "tokenizer", "chain"}
    engines = [e for e in edges if e["kind"] == "golden" and "/" in e["component"]]
    assert {e["component"] for e in engines} <= set(manifest.tolerances)
    for edge in engines:
        assert manifest.tolerances[edge["component"]] >= 2 * edge["measured"]


def test_every_batch_dimension_is_free_and_the_opset_is_twenty(small_bundle: Path) -> None:
    manifest = read_manifest(small_bundle)
    for component in manifest.components:
        if component.precision == "fp32":
            model = onnx.load(str(component_path(small_bundle, component)))
            assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [20]
            assert all(spec.shape[0] == "batch" for spec in (*component.inputs, *component.outputs))


def test_golden_vectors_are_plain_arrays_of_real_inputs(small_bundle: Path) -> None:
    manifest = read_manifest(small_bundle)
    with np.load(component_path(small_bundle, manifest.component("golden")), allow_pickle=False) as golden:
        assert np.abs(golden["log_mel/samples"]).max() > 0.01  # it sounds
        assert golden["pixels/picture"].std() > 5  # something is drawn
        assert golden["language_model/out/logits"].shape == (1, 384)


def test_a_breach_exits_with_one_sentence_and_leaves_no_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    with torch.no_grad():  # logits so large that eight bits cannot follow them
        model.base.model.text_model.norm.weight.mul_(64.0)
    save_checkpoint(model, tmp_path / "checkpoint", {"name": "loud"}, "Apache-2.0")
    assert main(["export", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "bundle")]) == 1
    error = capsys.readouterr().err
    assert "breach" in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("vaemotion: error: the export differs from its checkpoint: language_model/")
    assert last.endswith("no bundle was written")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_that_is_no_bundle_is_never_replaced(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    with pytest.raises(ExportError, match="is not a bundle; give --out a folder that does not exist yet"):
        export_bundle(small_checkpoint, tmp_path / "photos")
    assert (tmp_path / "photos" / "one.jpg").read_bytes() == b"x"


def test_a_place_that_cannot_be_written_is_a_sentence(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"writing the bundle failed: .*Not a directory"):
        export_bundle(small_checkpoint, tmp_path / "file" / "bundle")


@pytest.mark.parametrize("stage", ["base only", "no adapter"])
def test_an_unfinished_checkpoint_names_the_stage_that_is_missing(tmp_path: Path, stage: str) -> None:
    model = tiny_model(audio=stage == "no adapter", adapter=False)
    save_checkpoint(model, tmp_path / "checkpoint", {"name": "half"}, "Apache-2.0")
    with pytest.raises(ExportError, match=r"vaemotion train (align|emotion)"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["base", "audio", "adapter", "tokenizer"])
def test_a_flipped_byte_in_the_checkpoint_is_refused_by_its_name(
    small_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(small_checkpoint, tmp_path / "checkpoint")
    file = copy / json.loads((copy / "config.json").read_text())["components"][name]["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file.name} is damaged"):
        export_bundle(copy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_checkpoint_of_another_shape_is_refused_with_both_shapes(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(small_checkpoint, tmp_path / "checkpoint")
    config = json.loads((copy / "config.json").read_text())
    config["model"]["vlm"]["text_config"]["intermediate_size"] *= 2
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has shape \(\d+, \d+\), the config says \(\d+, \d+\)"):
        export_bundle(copy, tmp_path / "bundle")
