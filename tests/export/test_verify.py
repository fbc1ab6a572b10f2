"""``vaemotion verify``: a changed bundle is refused by the component's name, with and without checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.clips import ComparedClips
from export.predictors import load_predictor
from export.verify import logit_edges, verify, verify_against
from runtime.commands.verify import Edge, VerificationError, verify_bundle
from runtime.engines.golden import relative_difference
from tests.paths import ROOT
from tests.tiny import save_tiny_checkpoint, tiny_clip, tiny_model
from vaemotion.cli.main import main
from vaemotion.contract.bundle import ENGINE_ROLES, ROLES, Component, component_path, read_manifest, sha256_of
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prediction import Question
from vaemotion.model.checkpoint import load_checkpoint


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """Copy the bundle, so that a test may damage it."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def relist(bundle: Path, role: str, precision: str | None = None) -> None:
    """Make the manifest agree with a changed file."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["components"]:
        if entry["role"] == role and precision in (None, entry["precision"]):
            file = bundle / entry["path"]
            entry |= {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_bundle_verifies_alone_and_against_its_checkpoint(
    small_bundle: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(small_bundle)]) == 0
    assert "every file is intact, 7 comparisons hold" in " ".join(capsys.readouterr().out.split())
    against = ["--against", str(small_checkpoint), "--clips", "4"]
    assert main(["verify", str(small_bundle), *against]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "comparisons hold" in out
    assert "breach" not in out


@pytest.mark.parametrize("command", [["verify"], ["bundle", "inspect"]], ids=" ".join)
@pytest.mark.parametrize("role", ROLES)
def test_a_flipped_byte_is_refused_by_the_components_name(
    bundle: Path, role: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = component_path(bundle, read_manifest(bundle).component(role))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    assert main([*command, str(bundle)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"vaemotion: error: {role}")
    assert "is damaged (sha256 differs); copy or export the bundle again" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("role", ["vision_encoder", "audio_encoder", "emo_adapter"])
def test_an_engine_that_was_exchanged_with_its_hash_fails_its_golden_vectors(bundle: Path, role: str) -> None:
    file = component_path(bundle, read_manifest(bundle).component(role))
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype in (np.float16, np.float32) and array.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(array * array.dtype.type(1.05), tensor.name))
    onnx.save(model, str(file))
    relist(bundle, role)
    with pytest.raises(VerificationError, match=f"{role}/fp32, golden vectors"):
        verify_bundle(bundle)


@pytest.mark.parametrize("tolerances", [None, {"language_model/F16": 0.03}], ids=["shares", "in logits"])
def test_a_language_model_that_was_exchanged_with_its_hash_fails_its_golden_vectors(
    bundle: Path, tolerances: dict[str, float] | None
) -> None:
    if tolerances is not None:  # of a version that measured in logits
        listed = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps({**listed, "tolerances": tolerances}))
    verify_bundle(bundle)
    manifest = read_manifest(bundle)
    own = component_path(bundle, manifest.component("language_model", "F16"))
    shutil.copyfile(component_path(bundle, manifest.component("language_model", "Q8_0")), own)
    relist(bundle, "language_model", "F16")
    with pytest.raises(VerificationError, match="language_model/F16, golden vectors"):
        verify_bundle(bundle)


def test_language_models_are_judged_by_spread_likeliest_token_and_divergence() -> None:
    generator = np.random.default_rng(0)
    expected = (generator.normal(size=(40, 600)) * 8).astype(np.float32)
    first, second = np.argsort(expected[0])[::-1][:2]
    expected[0, second] = expected[0, first] - 1e-3  # two tokens are almost equally likely
    right = expected + generator.normal(size=expected.shape).astype(np.float32) * 0.008
    right[0, [first, second]] = expected[0, [first, second]]
    other = (generator.normal(size=expected.shape) * 8).astype(np.float32)
    one_flipped = right.copy()
    one_flipped[0, second] = expected[0, first] + 1e-3
    five_more = right.copy()
    five_more[:5] = other[:5]

    def verdict(got: np.ndarray, precision: str) -> list[bool]:
        component = Component("language_model", precision, "llm.gguf", "", 0, "Apache-2.0")
        return [edge.holds for edge in logit_edges(component, expected, got)]

    assert verdict(right, "F16") == verdict(one_flipped, "F16") == [True, True, True]
    assert verdict(five_more, "F16") == [False, False, False]
    assert verdict(other, "F16") == verdict(other, "Q8_0") == [False, False, False]
    assert verdict(right + 100, "Q6_K") == [True, True, True]


def test_another_checkpoint_of_the_same_shape_is_told_apart(small_bundle: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(VerificationError, match="vision_encoder/fp32, engine, batch 1"):
        verify(small_bundle, other, clips=4)


def test_a_checkpoint_with_other_constants_is_refused_before_anything_runs(
    bundle: Path, small_checkpoint: Path
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["front_end"]["windows"]["frames"] = 3
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    clips = ComparedClips(tiny_model().config.front_end, 4)
    with pytest.raises(VerificationError, match="constants"):
        verify_against(bundle, load_checkpoint(small_checkpoint), clips)


def test_an_agreement_holds_from_below_and_a_difference_from_above() -> None:
    assert Edge("chain", "b", "share", 0.995, 0.99, 0.995, at_least=True).holds
    assert not Edge("chain", "b", "share", 0.98, 0.99, 0.98, at_least=True).holds
    assert not Edge("engine", "b", "difference", 2e-4, 1e-4, 0.0).holds
    assert not Edge("engine", "b", "difference", float("nan"), 1e-4, 0.0).holds


def test_differences_are_relative_above_one_and_nan_is_infinite() -> None:
    expected = np.array([100.0, 0.0], np.float32)
    assert relative_difference(expected, expected + 1) == pytest.approx((0.01, 0.01))
    assert relative_difference(expected / 1000, expected / 1000 + 1)[0] == pytest.approx(1.0)
    assert relative_difference(expected, np.array([np.nan, 0.0]))[0] == float("inf")


def test_a_bundle_and_its_checkpoint_predict_the_same(small_bundle: Path, small_checkpoint: Path) -> None:
    question = Question("What is this?", ("rooster", "sea waves", "bell"), "content", rotations=3)
    written: list[tuple[str, str]] = []
    with load_predictor(small_bundle) as ours, load_predictor(small_checkpoint) as reference:
        for path in PATHS:
            got, expected = (predict(tiny_clip(3), path, [question]) for predict in (ours, reference))
            assert got.affect.valence == pytest.approx(expected.affect.valence, abs=1e-3)
            assert got.induced is not None
            assert expected.induced is not None
            assert got.induced.arousal == pytest.approx(expected.induced.arousal, abs=1e-3)
            np.testing.assert_allclose(got.induced.emotions, expected.induced.emotions, atol=1e-3)
            written += zip(got.written[0], expected.written[0], strict=True)
            np.testing.assert_allclose(got.answers[0], expected.answers[0], atol=0.05)
            assert np.abs(np.diff(expected.answers[0])).max() > 0.05  # the options differ by more than that
    assert len(written) == 3 * len(PATHS)
    # Random weights often leave two tokens almost equally likely, and half precision then decides otherwise.
    assert sum(device == trained for device, trained in written) >= 7


def test_a_bundle_from_before_the_induced_outputs_still_loads_and_verifies(
    bundle: Path, small_checkpoint: Path
) -> None:
    file = component_path(bundle, read_manifest(bundle).component("emo_adapter"))
    model = onnx.load(str(file))
    for output in [output for output in model.graph.output if output.name.startswith("induced_")]:
        model.graph.output.remove(output)
    onnx.save(model, str(file))
    relist(bundle, "emo_adapter")
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["components"]:
        entry["outputs"] = [o for o in entry["outputs"] if not o["name"].startswith("induced_")]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    verify_bundle(bundle)
    model = load_checkpoint(small_checkpoint)
    edges = verify_against(bundle, model, ComparedClips(model.config.front_end, 4))
    assert all(edge.holds for edge in edges)
    assert not any("induced" in edge.what for edge in edges)
    with load_predictor(bundle) as old, load_predictor(small_checkpoint) as reference:
        got, expected = (predict(tiny_clip(3), "audio", []) for predict in (old, reference))
    assert got.induced is None
    assert got.affect.valence == pytest.approx(expected.affect.valence, abs=1e-3)


def test_a_bundle_is_opened_without_torch(small_bundle: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        sys.modules["torch"] = sys.modules["transformers"] = sys.modules["onnx"] = None  # as if not installed
        from export.predictors import load_predictor
        with load_predictor(Path({str(small_bundle)!r})) as predict:
            print(sorted(predict.engines))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{sorted(ENGINE_ROLES)}\n", done.stderr


def test_what_is_neither_bundle_nor_checkpoint_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a bundle .* nor a checkpoint"), load_predictor(tmp_path):
        pass
