"""``vaemotion export``: a verified bundle, or nothing under the final name."""

from __future__ import annotations

import json
import os
import shutil
import sys
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from export.components import SMALL_TYPES
from export.errors import ExportError
from export.int8.judge import Budget
from export.options import Options, parse_drop
from export.pack import export_bundle
from export.step_key import PACKAGES, imported
from export.step_store import Finished
from export.workshop import STEPS_VARIABLE, ExportFolder, Step
from runtime.engines.golden import logit_key
from runtime.perception.predictor import open_predictor
from tests.int8_arithmetic import largest_pair, quantized_products
from tests.paths import ROOT
from tests.quick_export import fit_confidence_on_few_works, judge_jitter_on_few_clips
from tests.tiny import tiny_model
from vaemotion.cli.main import main
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    ROLES,
    component_path,
    read_manifest,
    sha256_of,
    verify_files,
)
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.speech import STANDARD
from vaemotion.data.art.build import build_procedural
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from vaemotion.model.vaemotion_llm import MissingPartError

SMALL = Options("int8", max_drop=0.6, windows=16, calibration_windows=16, clips=2)


@dataclass(frozen=True)
class Judged:
    """A store with the steps of the small bundle in FP32 and of ``SMALL``.

    ``outside``: by step, the modules that it ran through and that its key leaves out.
    """

    store: Path
    outside: Mapping[str, set[str]]


@pytest.fixture(scope="module")
def judged(small_checkpoint: Path, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Export ``SMALL`` once for all tests, with all steps but the slow ones."""
    folder, outside = tmp_path_factory.mktemp("judged"), {}
    store = Path(shutil.copytree(os.environ[STEPS_VARIABLE], folder / "steps"))
    for key, name in records(store).items():
        if not any(slow in name for slow in ("ONNX FP32", "confidence", "comparison")):  # on other clips
            (store / f"{key}.json").unlink()
    make = ExportFolder._make
    keeping = {"export.workshop", "export.step_key", "export.step_store", "vaemotion.contract.files"}
    keeping |= {"runtime.machine.facts", "vaemotion.contract.terminal", "vaemotion.contract.plain_text"}

    def observed(folder: ExportFolder, step: Step, key: str) -> Finished:
        called: set[str] = set()
        sys.setprofile(lambda frame, event, _: event == "call" and called.add(frame.f_code.co_filename))
        try:
            return make(folder, step, key)
        finally:
            sys.setprofile(None)
            covered = imported(step.code).modules | {step.make.__module__} | keeping
            paths = (Path(file) for file in called)
            parts = [p.relative_to(ROOT).with_suffix("").parts for p in paths if p.is_relative_to(ROOT)]
            modules = {".".join(names) for names in parts if names[0] in PACKAGES}
            outside[step.name] = {module.removesuffix(".__init__") for module in modules} - covered

    with pytest.MonkeyPatch.context() as patch:
        measure_little(patch)
        patch.setenv(STEPS_VARIABLE, str(store))
        patch.setattr(ExportFolder, "_make", observed)
        export_bundle(small_checkpoint, folder / "bundle", SMALL)
        patch.setattr(ExportFolder, "_make", make)
        export_bundle(small_checkpoint, folder / "fp32", Options(clips=4))
    return Judged(store, outside)


def measure_little(patch: pytest.MonkeyPatch) -> None:
    fit_confidence_on_few_works(patch)
    judge_jitter_on_few_clips(patch)
    patch.setattr("export.int8.search._TIMED_RUNS", 3)


@pytest.fixture
def steps(judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a copy of the judged steps alone."""
    copy = tmp_path / "copied-steps"
    shutil.copytree(judged.store, copy)
    monkeypatch.setenv(STEPS_VARIABLE, str(copy))
    measure_little(monkeypatch)
    return copy


def records(steps: Path) -> dict[str, str]:
    """Read the names of finished steps by key."""
    return {path.stem: json.loads(path.read_text())["name"] for path in steps.glob("*.json")}


def ran(steps: Path, export: Callable[[], None]) -> set[str]:
    """Export, and return the names of the steps that ran."""
    before = records(steps)
    export()
    return {name for key, name in records(steps).items() if key not in before}


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
    golden = [e for e in edges if e["kind"] == "golden" and "/" in e["component"]]
    for edge in golden:
        component = edge["component"]
        key = logit_key(component) if component.startswith("language_model/") else component
        assert manifest.tolerances[key] >= 2 * edge["measured"]


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
    with torch.no_grad():  # a channel that is never used takes the bits of those that share its block
        for layer in model.backbone.decoder.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[0] = 0.0
            for part in (
                layer.self_attn.q_proj,
                layer.self_attn.v_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
            ):
                part.weight[:, 0] = 200.0
    save_checkpoint(model, tmp_path / "checkpoint", {"name": "loud"}, "Apache-2.0")
    arguments = [str(tmp_path / "checkpoint"), "--out", str(tmp_path / "bundle"), "--clips", "2"]
    assert main(["export", *arguments]) == 1
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


def test_a_bundle_that_is_up_to_date_is_left_alone_and_a_damaged_one_is_made_again(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    tables = component_path(bundle, read_manifest(bundle).component("delimiters"))
    inode = tables.stat().st_ino
    arguments = ["export", str(small_checkpoint), "--out", str(bundle), "--clips", "4"]
    assert main(arguments) == 0
    assert "is up to date; delete it to rebuild" in " ".join(capsys.readouterr().err.split())
    assert tables.stat().st_ino == inode
    whole = tables.read_bytes()
    tables.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(arguments) == 0
    assert "is up to date" not in " ".join(capsys.readouterr().err.split())
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
    losses = [quality["mean_kl_nats"] for quality in qualities.values()]
    assert list(qualities)[: len(losses)] == list(SMALL_TYPES)[: len(losses)]
    assert all(loss <= Budget().max_kl_nats / 2 for loss in losses[:-1])  # the next smaller one was tried
    assert manifest.verification["components"]["language_model/Q8_0"]["kl_nats"]["delta"] < 0.05
    chosen = manifest.component("language_model").precision
    assert [c.precision for c in manifest.components if c.role == "language_model"] == [chosen, "F16"]


def test_no_two_products_of_an_exported_bundle_leave_int16(small_int8_bundle: Path) -> None:
    manifest = read_manifest(small_int8_bundle)
    for role in ENGINE_ROLES:
        for scheme in ("int8", "int8-cpu"):
            path = component_path(small_int8_bundle, manifest.component(role, scheme))
            products = quantized_products(onnx.load(str(path)))
            assert products
            assert max(largest_pair(weight) for _, weight in products) <= np.iinfo(np.int16).max


def test_a_processor_runs_the_variant_that_is_made_for_it(small_int8_bundle: Path) -> None:
    with open_predictor(small_int8_bundle) as predictor:
        assert all("(int8-cpu)" in predictor.engines[role].announcement for role in ENGINE_ROLES)  # type: ignore[attr-defined]
    with open_predictor(small_int8_bundle, precision="fp32") as predictor:
        assert all("(fp32)" in predictor.engines[role].announcement for role in ENGINE_ROLES)  # type: ignore[attr-defined]


def test_a_budget_that_int8_cannot_hold_exits_with_3_and_leaves_no_bundle(
    small_checkpoint: Path,
    tmp_path: Path,
    steps: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("export.int8.plan.MOST_JUDGEMENTS", 2)
    options = "--precision int8 --max-drop 0.00001pp --windows 16 --calibration-windows 16 --clips 2"
    out = tmp_path / "out" / "bundle"
    assert main(["export", str(small_checkpoint), "--out", str(out), *options.split()]) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "neither does FP16 (ccc_" in last
    assert last.endswith("allow more with --max-drop")
    assert list(out.parent.iterdir()) == []


def test_a_budget_that_holds_is_judged_and_written_down(
    small_checkpoint: Path, tmp_path: Path, steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--precision int8 --max-drop 60pp --windows 16 --calibration-windows 16 --clips 2"
    assert main(["export", str(small_checkpoint), "--out", str(tmp_path / "bundle"), *options.split()]) == 0
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
    against = ["--against", str(small_checkpoint), "--clips", "2"]
    assert main(["verify", str(tmp_path / "bundle"), *against]) == 0


def test_without_calibration_there_is_no_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tiny_model(), tmp_path / "checkpoint", {"name": "foreign"}, "Apache-2.0")
    out = str(tmp_path / "bundle")
    assert main(["export", str(tmp_path / "checkpoint"), "--out", out, "--precision", "int8"]) == 1
    assert "give --calibration MANIFEST --media-root FOLDER" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"], "nothing was made"


@pytest.mark.parametrize("text", ["0pp", "-1pp", "much", "100pp"])
def test_a_drop_that_is_none_is_refused(text: str, small_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--precision", "int8", "--max-drop", text, "--out", str(tmp_path / "bundle")]
    assert main(["export", str(small_checkpoint), *arguments]) == 2


def test_a_drop_may_be_given_in_points_or_as_a_share() -> None:
    assert parse_drop("0.5pp") == parse_drop("0.005") == 0.005
    assert parse_drop("none") is None


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.emo_adapter.key.weight[3, 5] = float("nan")
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


# --- options are checked before the first step -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options("fp64"), "--precision must be one of fp32, fp16, int8, got 'fp64'"),
        (Options(max_drop=1.5), "--max-drop must be between 0 and 1"),
        (Options(windows=15), "--windows must be at least 16, got 15"),
        (Options(calibration_windows=0), "--calibration-windows must be at least 16, got 0"),
        (Options(clips=0), "--clips must be at least 1, got 0"),
        (Options(exporter="optimum"), "--exporter must be one of torch, transformers, got 'optimum'"),
        (Options(question="a\nb"), "--question must be a text of at most 500 characters in one line"),
        (Options("fp32", calibration=Path("m.jsonl")), "--calibration: FP32 has no calibration"),
        (Options("fp16", calibration=Path("m.jsonl"), media_root=Path("nowhere")), "--media-root: .*nowhere"),
    ],
)
def test_an_impossible_option_is_wrong_usage(
    small_checkpoint: Path, tmp_path: Path, options: Options, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        export_bundle(small_checkpoint, tmp_path / "bundle", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["none", "test", "broken"])
def test_a_manifest_that_cannot_calibrate_is_refused_before_the_first_step(
    small_checkpoint: Path, tmp_path: Path, split: str
) -> None:
    manifest = tmp_path / "data" / "manifest.jsonl"
    if split == "none":
        manifest.parent.mkdir()
    else:
        build_procedural(tmp_path / "data", "train" if split == "broken" else split, 2, 0)
    if split == "broken":
        manifest.write_text(manifest.read_text().replace('"split"', '"splat"'))
    sentence = {"none": "does not exist", "test": "no item in its split 'train'", "broken": "has 24 problems"}
    options = Options("int8", calibration=manifest, media_root=manifest.parent)
    with pytest.raises(UserError, match=sentence[split]):
        export_bundle(small_checkpoint, tmp_path / "bundle", options)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("kind", "precision", "sentence"),
    [
        ("audio", "fp16", "0 of 16 calibration windows have frames, fp16 needs 1"),
        ("image", "fp16", "0 of 16 calibration windows have sound, fp16 needs 1"),
        ("damaged", "fp16", "a.wav cannot be opened"),
    ],
)
def test_media_that_cannot_calibrate_are_found_in_the_first_step(
    small_checkpoint: Path, tmp_path: Path, kind: str, precision: str, sentence: str
) -> None:
    manifest, media = tmp_path / "manifest.jsonl", tmp_path / "media"
    media.mkdir()
    name = {"audio": "a.wav", "image": "a.png", "damaged": "a.wav"}[kind]
    if kind == "image":
        cv2.imwrite(str(media / name), np.full((32, 32, 3), 99, np.uint8))
    else:
        soundfile = np.random.default_rng(0).integers(-9000, 9000, 32_000).astype("<i2")
        with wave.open(str(media / name), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(soundfile.tobytes())
    if kind == "damaged":
        (media / name).write_bytes((media / name).read_bytes()[:30])
    medium = "image" if kind == "image" else "audio"
    item = Item(
        id="1",
        pairing="none",
        task="emotion",
        modality="visual" if kind == "image" else "audio",
        valence=0.1,
        arousal=0.2,
        construct="expressed",
        split="train",
        work_id="w",
        creator_id="c",
        source="test",
        license="CC0-1.0",
        sha256=sha256_of(media / name),
        **{medium: name},
    )
    write_manifest(manifest, [item])
    options = Options(precision, calibration=manifest, media_root=media, calibration_windows=16, clips=1)
    with pytest.raises(UserError, match=sentence):
        export_bundle(small_checkpoint, tmp_path / "bundle", options)
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.glob(".bundle.*"))


def test_a_disk_without_room_is_refused_before_the_first_step(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STEPS_VARIABLE, str(tmp_path / "steps"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    with pytest.raises(ExportError, match=r"has 0 MB for this export, which needs at least \d MB; make room"):
        export_bundle(small_checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "steps").exists()


# --- another option runs only the steps that depend on it --------------------------------------------------


def test_another_option_runs_only_the_steps_that_depend_on_it(
    small_checkpoint: Path, tmp_path: Path, steps: Path
) -> None:
    def export(options: Options, name: str = "bundle") -> set[str]:
        return ran(steps, lambda: export_bundle(small_checkpoint, tmp_path / name, options))

    export(SMALL)
    manifest = read_manifest(tmp_path / "bundle")
    chosen = manifest.component("language_model")
    assert export(SMALL, "the same elsewhere") == set()
    assert manifest.speech == STANDARD
    ran_anew = export(replace(SMALL, question="How does it feel?"))
    asked = read_manifest(tmp_path / "bundle")
    assert asked.speech == replace(STANDARD, question="How does it feel?")
    spoken, label = asked.verification["language_models"], asked.component("language_model").label
    judgements = {name for name in ran_anew if name.startswith("judgement of ")}
    assert judgements
    # With other answers another language model may be chosen, which is then compared as a whole.
    may_run = {f"comparison, tokenizer {label}", "comparison, chain as preferred"}
    assert ran_anew - judgements - may_run == {
        "importance of the language model's channels",
        *(f"language_model → {file_type}" for file_type in spoken),
        f"comparison, logits {label}",
        "comparison, logits language_model (F16)",
    }
    assert export(replace(SMALL, precision="fp32")) <= {"comparison, logits language_model (Q8_0)"}
    assert export(replace(SMALL, precision="fp16")) <= {"comparison, chain as preferred"}
    assert export(replace(SMALL, clips=1)) == {
        *(f"comparison, engine {c.label}" for c in manifest.components if c.role in ENGINE_ROLES),
        f"comparison, logits {chosen.label}",
        "comparison, logits language_model (F16)",
        "comparison, chain FP32",
        "comparison, chain as preferred",
    }
    assert {name.partition(" of ")[0] for name in export(replace(SMALL, windows=17))} == {"judgement"}
    assert export(replace(SMALL, max_drop=0.61)) == {"blocks within the budget on search windows"}
    recalibrated = export(replace(SMALL, calibration_windows=17))
    # How many judgements and comparisons there are follows from the engines that are found.
    # So does the number of small types that are tried.
    smaller = tuple(f"language_model → {file_type}" for file_type in SMALL_TYPES[1:])
    assert {n for n in recalibrated if not n.startswith(("judgement", "comparison", *smaller))} == {
        "calibration windows",
        *(f"{role} → ONNX FP16" for role in ENGINE_ROLES),
        "importance of the language model's channels",
        f"language_model → {SMALL_TYPES[0]}",
        *(f"{role} → ranges" for role in ("vision_encoder", "audio_encoder")),
        *(f"emo_adapter → ranges behind {scheme} encoders" for scheme in ("int8", "int8-cpu")),
        *(f"{role} → damages in {scheme}" for role in ENGINE_ROLES for scheme in ("int8", "int8-cpu")),
        "blocks within the budget on search windows",
        "blocks that are not faster",
        "engines → INT8",
    }
    assert not {name for name in recalibrated if "fp32" in name or "FP32" in name}


@pytest.mark.parametrize("component", ["adapter", "audio", "base", "prompt"])
def test_a_changed_component_of_the_checkpoint_runs_only_the_steps_that_read_it(
    small_checkpoint: Path, tmp_path: Path, steps: Path, component: str
) -> None:
    model = load_checkpoint(small_checkpoint)
    with torch.no_grad():
        if component == "adapter":
            model.emo_adapter.null.mul_(1.5)
        elif component == "audio":
            next(iter(model.audio_pathway.parameters())).mul_(1.5)
        elif component == "base":
            model.base.model.text_model.norm.weight.mul_(1.5)
        else:
            model.config = replace(
                model.config, prompt=replace(model.config.prompt, answer=" It is {answer}")
            )
    save_checkpoint(model, tmp_path / "changed", {"name": "small", "align": {}}, "Apache-2.0")
    done = ran(steps, lambda: export_bundle(tmp_path / "changed", tmp_path / "bundle", Options(clips=1)))
    made = {name for name in done if not name.startswith("comparison")}
    always = {"golden vectors", "confidence of readings"}
    assert (
        made - always
        == {
            "adapter": {"emo_adapter → ONNX FP32"},
            "audio": {"audio_encoder → ONNX FP32", "token embeddings, delimiters, tokenizer"},
            "base": {
                "vision_encoder → ONNX FP32",
                "language_model → GGUF F16",
                "language_model → GGUF Q8_0",
                "token embeddings, delimiters, tokenizer",
            },
            # Their chat template is made from the prompt.
            "prompt": {"language_model → GGUF F16", "language_model → GGUF Q8_0"},
        }[component]
    )
    assert always <= made


def test_no_step_runs_through_code_that_its_key_leaves_out(judged: Judged) -> None:
    assert len(judged.outside) > 30
    assert {name: modules for name, modules in judged.outside.items() if modules} == {}


def test_a_finished_bundle_is_the_source_of_the_next_one(
    small_checkpoint: Path, tmp_path: Path, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STEPS_VARIABLE)
    own = steps.rename(tmp_path / "bundle.steps")  # saves the time of the first export
    export_bundle(small_checkpoint, tmp_path / "bundle", Options(clips=4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle.steps"]
    inodes = {p.name: p.stat().st_ino for p in (tmp_path / "bundle" / "components").iterdir()}
    done = ran(own, lambda: export_bundle(small_checkpoint, tmp_path / "bundle", Options(clips=1)))
    assert done == {
        *(f"comparison, engine {role} (fp32)" for role in ENGINE_ROLES),
        *(f"comparison, logits language_model ({file_type})" for file_type in ("F16", "Q8_0")),
        "comparison, chain FP32",
    }
    assert {p.name: p.stat().st_ino for p in (tmp_path / "bundle" / "components").iterdir()} == inodes
    assert read_manifest(tmp_path / "bundle").verified


def test_a_file_of_the_bundle_that_was_edited_is_made_again(
    small_checkpoint: Path, tmp_path: Path, steps: Path
) -> None:
    export_bundle(small_checkpoint, tmp_path / "bundle", Options(clips=4))
    edited = tmp_path / "bundle" / "components" / "delimiters.npy"
    whole, stored = edited.read_bytes(), sha256_of(edited)
    edited.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # in place: the store has the same file
    assert sha256_of(steps / "files" / stored) != stored
    export_bundle(small_checkpoint, tmp_path / "bundle", Options(clips=4))
    assert (tmp_path / "bundle" / "components" / "delimiters.npy").read_bytes() == whole


# --- the checkpoint ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["base only", "no adapter"])
def test_an_unfinished_checkpoint_names_the_stage_that_is_missing(tmp_path: Path, stage: str) -> None:
    model = tiny_model(audio=stage == "no adapter", adapter=False)
    save_checkpoint(model, tmp_path / "checkpoint", {"name": "half"}, "Apache-2.0")
    with pytest.raises(MissingPartError, match=r"vaemotion train (align|emotion)"):
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
