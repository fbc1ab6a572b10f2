"""Exports and verifications on a user's own media, of a checkpoint that never learned on procedural art."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.options import Options
from export.pack import export_bundle
from tests.own_media import QUESTION, write_own_manifest
from tests.quick_export import judge_jitter_on_few_clips
from vaemotion.cli.main import main
from vaemotion.contract.bundle import component_path, read_manifest
from vaemotion.contract.confidence import confidence_of
from vaemotion.contract.errors import UsageError

FILMS = 22


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the manifest of films in two splits."""
    return write_own_manifest(tmp_path_factory.mktemp("own"), FILMS, ("train", "validation"))


@pytest.fixture(scope="module")
def stranger(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small checkpoint as one that was trained on something else than procedural art."""
    folder = shutil.copytree(small_checkpoint, tmp_path_factory.mktemp("stranger") / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["lineage"]["align"] = {"source": "films.jsonl", "procedural": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def options(own: Path, **also: object) -> Options:
    given = {
        "calibration": own,
        "media_root": own.parent,
        "windows": 20,
        "calibration_windows": 16,
        "clips": 3,
    }
    return Options("int8", max_drop=0.9, **{**given, **also})  # type: ignore[arg-type]


def test_int8_confidence_comparison_and_golden_vectors_are_of_the_users_media(
    stranger: Path,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge_jitter_on_few_clips(monkeypatch)
    export_bundle(stranger, tmp_path / "bundle", options(own, judge=own))
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.verified
    budget = manifest.verification["budget"]
    assert (budget["material"], budget["windows"]) == ("own.jsonl, split validation", 20)
    metrics = set(budget["losses"]["int8"])
    assert {"agreement_valence/audio", "ccc_arousal/visual", "content_accuracy", "kl_nats"} <= metrics
    # The films are too short for streams, and that is all that is missing.
    (missing,) = manifest.verification["not_judged"]
    assert missing.startswith("jitter: fewer than 2 media of own.jsonl")
    confidence = confidence_of(manifest)
    assert confidence is not None
    assert manifest.lineage["confidence_source"] == "own.jsonl, split validation"
    assert confidence.fitted_on + confidence.judged_on == FILMS
    assert set(confidence.paths) == {"audio", "visual", "audio-visual"}
    golden = manifest.lineage["golden"]
    assert golden["source"] == "own.jsonl, split validation"
    assert golden["items"][0].startswith("validation-")
    assert golden["licenses"] == ["CC0-1.0"]
    with np.load(component_path(tmp_path / "bundle", manifest.component("golden"))) as vectors:
        assert vectors["vision_encoder/in/pixels"].std() > 0.01
    printed = " ".join(capsys.readouterr().err.split())
    assert "windows of own.jsonl, split validation" in printed


def test_what_will_not_be_judged_is_said_before_the_first_step_and_stands_in_the_bundle(
    stranger: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_bundle(stranger, tmp_path / "bundle", options(own))
    said = capsys.readouterr().err.split("vision_encoder → ONNX FP32")[0]
    manifest = read_manifest(tmp_path / "bundle")
    missing = manifest.verification["not_judged"]
    assert [text.split(";")[0].split(":")[0] for text in missing] == [
        "INT8's loss of affect, content, narration and steadiness end to end",
        "how far readings can be trusted",
        "accuracy on media that the model knows",
    ]
    for text in missing:
        assert f"not judged: {text}" in " ".join(said.split())
    assert "confidence" not in manifest.lineage
    budget = manifest.verification["budget"]
    assert "losses" not in budget  # searched on the calibration windows, and not judged on drawings
    assert budget["int8_share"]["int8"] > 0.5
    assert {component.precision for component in manifest.components} >= {"int8", "int8-cpu"}


def test_a_model_of_procedural_art_is_judged_on_it_without_a_word(
    small_bundle: Path, small_int8_bundle: Path
) -> None:
    assert read_manifest(small_bundle).verification["not_judged"] == []
    assert read_manifest(small_bundle).lineage["confidence_source"] == "procedural art"
    assert read_manifest(small_int8_bundle).lineage["golden"]["source"] == "procedural art"


def test_media_that_calibrate_cannot_judge(stranger: Path, own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    lines = [json.loads(line) for line in own.read_text().splitlines()]
    kept = [line | {"split": "validation"} for line in lines if line["split"] == "train"]
    other.write_text("".join(json.dumps(line) + "\n" for line in kept))
    with pytest.raises(
        UsageError, match=r"the media of calibration item 'train-.*which judges, are the same"
    ):
        export_bundle(stranger, tmp_path / "bundle", options(own, judge=other))
    assert not list(tmp_path.glob(".bundle.*"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"judge": "train"}, r"has no item of split validation or test; its splits: train"),
        ({"confidence": "few"}, r"--confidence .*: 3 of 5 media of split 'validation' have .* 20 are needed"),
    ],
)
def test_a_manifest_that_cannot_judge_is_refused_before_the_first_step(
    stranger: Path, own: Path, tmp_path: Path, given: dict[str, str], sentence: str
) -> None:
    files = {"train": ("train",), "few": ("validation",)}
    (option, kind), *_ = given.items()
    manifest = write_own_manifest(tmp_path / "media", 3, files[kind])
    root = {"calibration": None, "media_root": manifest.parent, option: manifest}
    with pytest.raises(UsageError, match=sentence):
        export_bundle(stranger, tmp_path / "bundle", Options("fp32", **root))  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["media"]


def test_verify_compares_on_the_users_media_and_asks_their_questions(
    small_bundle: Path,
    small_checkpoint: Path,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from runtime.perception.predictor import Predictor

    asked: list[str] = []
    call = Predictor.__call__

    def listening(self: object, clip: object, path: str, questions: list[object]) -> object:
        asked.extend(question.text for question in questions)  # type: ignore[attr-defined]
        return call(self, clip, path, questions)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "__call__", listening)
    command = ["verify", str(small_bundle), "--against", str(small_checkpoint), "--clips", "4"]
    assert main([*command, "--manifest", str(own), "--media-root", str(own.parent)]) == 0
    assert "comparisons hold" in " ".join(capsys.readouterr().out.split())
    assert QUESTION in asked
    assert "What is this?" not in asked  # the question of procedural art


def test_verify_needs_a_checkpoint_to_compare_with_on_a_manifest(
    small_bundle: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(small_bundle), "--manifest", str(own)]) == 2
    assert "--manifest goes with --against CHECKPOINT" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "verify"])
def test_the_help_teaches_what_a_manifest_is_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    options_of = {
        "export": ("--judge FILE", "--confidence FILE", "split 'validation', or else 'test', judges INT8"),
        "verify": ("--manifest FILE", "clips to compare on, and questions about them"),
    }
    assert all(part in text for part in options_of[command])
