"""``vaemotion export``: a verified bundle, or nothing under the final name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.pack import export_bundle, parse_drop
from export.to_onnx import ExportError
from runtime.predictor import open_predictor
from tests.tiny import tiny_model
from vaemotion.cli import main
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    ROLES,
    component_path,
    read_manifest,
    sha256_of,
    verify_files,
)
from vaemotion.contract.front_end import PATHS
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


def test_a_breach_exits_with_one_sentence_and_its_bundle_is_marked(
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
    assert last.endswith("bundle was not written, and bundle.unverified is marked as unverified")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle.unverified", "checkpoint"]
    assert not read_manifest(tmp_path / "bundle.unverified").verified
    with open_predictor(tmp_path / "bundle.unverified"):
        assert "bundle.unverified is not verified" in " ".join(capsys.readouterr().err.split())


def test_a_verified_bundle_says_so_and_is_opened_in_silence(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_manifest(small_bundle).verified
    with open_predictor(small_bundle):
        assert capsys.readouterr().err == ""


def test_the_same_export_again_makes_nothing_and_a_damaged_one_is_made_anew(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    tables = component_path(bundle, read_manifest(bundle).component("delimiters"))
    inode = tables.stat().st_ino
    assert main(["export", str(small_checkpoint), "--out", str(bundle)]) == 0
    assert "nothing to do" in " ".join(capsys.readouterr().err.split())
    assert tables.stat().st_ino == inode
    whole = tables.read_bytes()
    tables.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["export", str(small_checkpoint), "--out", str(bundle)]) == 0
    assert "nothing to do" not in " ".join(capsys.readouterr().err.split())
    assert tables.read_bytes() == whole


def test_int8_brings_every_precision_its_calibration_and_an_account_of_every_block(
    small_int8_bundle: Path,
) -> None:
    manifest = read_manifest(small_int8_bundle)
    for role in ENGINE_ROLES:
        listed = {c.precision: c.bytes for c in manifest.components if c.role == role}
        assert set(listed) == {"fp32", "fp16", "int8", "int8-cpu"}
        assert listed["int8"] < listed["fp16"] < listed["fp32"]
    calibration = manifest.lineage["calibration"]
    assert calibration["kinds"]["scene"] == 24
    assert len(calibration["sha256"]) == calibration["windows"] == 33
    accounts = manifest.verification["budget"]["engines"]
    assert {(a["role"], a["scheme"]) for a in accounts} == {
        (r, s) for r in ENGINE_ROLES for s in ("int8", "int8-cpu")
    }
    for account in accounts:
        assert account["int8_weight_bytes"] > 0.5 * account["matmul_weight_bytes"]
        assert (account["method"], account["methods_tried"]) == ("max", {})  # nothing was searched
        assert all(block["damage"] is None and block["state"] == "INT8" for block in account["blocks"])
    qualities = manifest.verification["language_models"]
    assert set(qualities) == {"Q4_K_M", "Q5_0", "Q8_0"}
    assert manifest.verification["components"]["language_model/Q8_0"]["kl_nats"]["delta"] < 0.05
    chosen = manifest.component("language_model").precision
    assert [c.precision for c in manifest.components if c.role == "language_model"] == [chosen, "F16"]


def test_a_processor_runs_the_variant_that_is_made_for_it(small_int8_bundle: Path) -> None:
    with open_predictor(small_int8_bundle) as predictor:
        assert all("(int8-cpu)" in predictor.engines[role].announcement for role in ENGINE_ROLES)  # type: ignore[attr-defined]
    with open_predictor(small_int8_bundle, precision="fp32") as predictor:
        assert all("(fp32)" in predictor.engines[role].announcement for role in ENGINE_ROLES)  # type: ignore[attr-defined]


def test_a_budget_that_int8_cannot_hold_exits_with_3_and_leaves_no_bundle(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--precision",
        "int8",
        "--max-drop",
        "0.00001pp",
        "--windows",
        "16",
        "--calibration-windows",
        "24",
    ]
    assert main(["export", str(small_checkpoint), "--out", str(tmp_path / "bundle"), *arguments]) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "neither does FP16 (ccc_" in last
    assert last.endswith("allow more with --max-drop")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle.partial"]


def test_a_budget_that_holds_is_judged_and_written_down(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--precision",
        "int8",
        "--max-drop",
        "60pp",
        "--windows",
        "16",
        "--calibration-windows",
        "24",
        "--clips",
        "4",
    ]
    assert main(["export", str(small_checkpoint), "--out", str(tmp_path / "bundle"), *arguments]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "int8 against FP32, 16 windows" in shown
    budget = read_manifest(tmp_path / "bundle").verification["budget"]
    assert set(budget["losses"]) == {"int8", "int8-cpu"}
    metrics = {
        "content_accuracy",
        "kl_nats",
        *(f"{m}/{p}" for m in ("ccc_valence", "ccc_arousal", "jitter") for p in PATHS),
    }
    for losses in budget["losses"].values():
        assert set(losses) == metrics
        assert all(loss["bound"] <= loss["allowed"] for loss in losses.values())
    assert budget["int8_share"]["int8"] > 0.5
    assert main(["verify", str(tmp_path / "bundle"), "--against", str(small_checkpoint)]) == 0


def test_without_calibration_there_is_no_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tiny_model(), tmp_path / "checkpoint", {"name": "foreign"}, "Apache-2.0")
    out = str(tmp_path / "bundle")
    assert main(["export", str(tmp_path / "checkpoint"), "--out", out, "--precision", "int8"]) == 1
    assert "give --calibration MANIFEST --media-root FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0pp", "-1pp", "much", "100pp"])
def test_a_drop_that_is_none_is_refused(text: str, small_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--precision", "int8", "--max-drop", text, "--out", str(tmp_path / "bundle")]
    assert main(["export", str(small_checkpoint), *arguments]) == 2


def test_a_drop_may_be_given_in_points_or_as_a_share() -> None:
    assert parse_drop("0.5pp") == parse_drop("0.005") == 0.005
    assert parse_drop("none") is None


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    assert model.adapter is not None
    with torch.no_grad():
        model.adapter.key.weight[3, 5] = float("nan")
    save_checkpoint(model, tmp_path / "checkpoint", {"name": "broken"}, "Apache-2.0")
    assert main(["export", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "bundle")]) == 1
    assert "weight 'adapter.key.weight' of the checkpoint is not finite" in capsys.readouterr().err
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
