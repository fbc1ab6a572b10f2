"""``vaemotion bundle diff`` on folders that hold manifests alone: no component's file is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaemotion.cli.main import main

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def compare(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Return a function that compares the small bundle's manifest with a changed one.

    It returns the exit code and the JSON of `vaemotion bundle diff`.
    """

    def run(change: Change, before: Change = lambda manifest: None) -> tuple[int, dict[str, Any]]:
        original = json.loads((small_bundle / "manifest.json").read_text())
        before(original)
        changed = copy.deepcopy(original)
        change(changed)
        for name, manifest in (("a", original), ("b", changed)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        code = main(["bundle", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def entry_of(manifest: dict[str, Any], role: str) -> dict[str, Any]:
    return next(c for c in manifest["components"] if c["role"] == role)


def found(report: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the differences of a report as (kind, what) → (a, b)."""
    return {(d["kind"], d["what"]): (d["a"], d["b"]) for d in report["differences"]}


def test_a_bundle_equals_itself(compare: Any) -> None:
    code, report = compare(lambda manifest: None)
    assert (code, report["equal"], report["differences"]) == (0, True, [])
    assert report["sentence"].startswith("no difference")


def test_other_weights_are_named_with_code_one(compare: Any) -> None:
    code, report = compare(lambda m: entry_of(m, "audio_encoder").update(sha256="0" * 64, bytes=5_000_000))
    assert (code, report["equal"]) == (1, False)
    [(key, (a, b))] = found(report).items()
    assert key == ("weights", "audio_encoder/fp32")
    assert b == "000000000000, 5.00 MB"
    assert a != b
    assert report["sentence"] == "they differ in what counts for results: weights (audio_encoder/fp32)"


def test_an_added_precision_is_listed_with_its_license(compare: Any) -> None:
    def add(manifest: dict[str, Any]) -> None:
        entry = entry_of(manifest, "vision_encoder")
        manifest["components"].append({**entry, "precision": "int8", "licence": "MIT"})

    code, report = compare(add)
    assert code == 1
    assert found(report)[("precision", "vision_encoder")] == ("fp32", "fp32, int8")
    a, b = found(report)[("weights", "vision_encoder/int8")]
    assert a == "–"
    assert b.endswith("MB, MIT")
    assert len(report["differences"]) == 2


@pytest.mark.parametrize(
    ("kind", "what", "change", "after"),
    [
        ("front end", "image.mean", lambda m: m["front_end"]["image"].update(mean=0.25), "0.25"),
        ("prompt and tokens", "prefix", lambda m: m["prompt"].update(prefix="Sir:"), "Sir:"),
        ("prompt and tokens", "stop_token_ids", lambda m: m.update(stop_token_ids=[7]), "[7]"),
        ("prompt and tokens", "context_tokens", lambda m: m.update(context_tokens=300), "300"),
        ("prompt and tokens", "emotions", lambda m: m["emotions"].__setitem__(0, "joy"), "9 entries"),
        ("weights", "tokenizer", lambda m: entry_of(m, "tokenizer").update(sha256="f" * 64), "ffffffffffff"),
    ],
)
def test_a_difference_that_changes_results_gives_code_one(
    kind: str, what: str, change: Change, after: str, compare: Any
) -> None:
    code, report = compare(change)
    assert code == 1
    assert found(report)[(kind, what)][1].startswith(after)
    assert kind in report["sentence"]


def test_provenance_is_listed_and_gives_code_zero(compare: Any) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["lineage"]["tools"]["torch"] = "9.9"
        manifest["lineage"]["export_s"] = 1.5
        entry_of(manifest, "emo_adapter")["licence"] = "MIT"
        entry_of(manifest, "golden")["sha256"] = "0" * 64
        measured = {"ccc_valence_audio": {"delta": -0.002, "bound": -0.004}}
        manifest["verification"]["components"] = {"vision_encoder/fp32": measured}

    code, report = compare(change)
    assert (code, report["equal"]) == (0, True)
    pairs = found(report)
    assert pairs[("tools", "torch")][1] == "9.9"
    assert pairs[("licenses", "emo_adapter/fp32")] == ("Apache-2.0", "MIT")
    assert pairs[("provenance", "export_s")][1] == "1.5"
    assert ("golden vectors", "golden") in pairs
    assert pairs[("accuracy", "vision_encoder/fp32 ccc_valence_audio")] == ("–", "-0.002 (bound -0.004)")
    assert report["sentence"].startswith("equal in what counts for results")


def test_any_calibration_is_compared_and_long_lists_are_counted(compare: Any) -> None:
    def before(manifest: dict[str, Any]) -> None:
        hashes = [f"{i:064x}" for i in range(300)]
        manifest["lineage"]["calibration"] = {"hashes": hashes, "coverage": {"awe": 4, "classes": ["a", "b"]}}

    def change(manifest: dict[str, Any]) -> None:
        calibration = manifest["lineage"]["calibration"]
        calibration["hashes"] = calibration["hashes"][:290]
        calibration["coverage"] = {"awe": 5, "classes": ["a", "b"], "fear": 1}

    code, report = compare(change, before)
    assert code == 0
    assert found(report) == {
        ("calibration", "hashes"): ("300 entries, 10 not in the other", "290 entries, 0 not in the other"),
        ("calibration", "coverage.awe"): ("4", "5"),
        ("calibration", "coverage.fear"): ("–", "1"),
    }


def test_the_terminal_begins_with_the_sentence(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    manifest["lineage"]["tools"]["torch"] = "9.9"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert main(["bundle", "diff", str(small_bundle), str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("equal in what counts for results")
    assert any("torch" in line and "9.9" in line for line in lines)


def test_a_folder_without_a_manifest_is_refused_with_one_sentence(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{")
    for other, reason in (
        (tmp_path, f"{tmp_path / 'manifest.json'} is not JSON"),
        (tmp_path / "nowhere", f"no bundle at '{tmp_path / 'nowhere'}' (manifest.json not found)"),
    ):
        assert main(["bundle", "diff", str(small_bundle), str(other)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"vaemotion: error: {reason}")
        assert captured.err.count("\n") == 1
