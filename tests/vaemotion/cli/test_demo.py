"""``vaemotion demo``, the ready bundle that it plays, and a run without the extras that a device may lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime.commands.timeline.read import read_timeline
from tests.media import write_work
from tests.paths import ROOT
from vaemotion.cli.demo import READY_BUNDLE
from vaemotion.cli.main import main
from vaemotion.contract.bundle import read_manifest, sha256_of, verify_files

LIMIT_BYTES = 25_000_000
# Runs the command line in a process in which these packages cannot be imported.
WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {packages!r} else found(name, package)
from vaemotion.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def command_without(packages: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT.format(packages=packages), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_ready_bundle_is_of_the_shipped_checkpoint_whole_verified_and_small() -> None:
    bundle = ROOT / READY_BUNDLE
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert manifest.verified
    config = ROOT / "models/vaemotion-tiny/config.json"
    assert manifest.lineage["checkpoint_config_sha256"] == sha256_of(config)
    models = [c.precision for c in manifest.components if c.role == "language_model"]
    assert models == ["F16"]
    assert sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) <= LIMIT_BYTES
    weights = onnx.load(str(bundle / "components/vision_encoder.fp32.onnx")).graph.initializer
    assert sum(w.data_type == onnx.TensorProto.FLOAT16 for w in weights) > 20


def test_the_demo_plays_the_ready_bundle_without_torch(tmp_path: Path) -> None:
    clip = write_work(tmp_path / "clip.mkv", 1.2)
    out = tmp_path / "demo"
    packages = ("torch", "transformers", "accelerate", "safetensors", "onnx", "matplotlib")
    done = command_without(packages, "demo", "--clip", str(clip), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "pip install 'vaemotion[plot]'" in done.stderr
    timeline = read_timeline(out / "timeline.jsonl")
    assert timeline.end is not None
    assert timeline.end.readings == len(timeline.readings) >= 11
    assert timeline.narrations


def test_the_demo_leaves_plot_and_report(small_bundle: Path, tmp_path: Path) -> None:
    clip = write_work(tmp_path / "clip.mkv", 0.6)
    out = tmp_path / "new" / "demo"
    assert main(["demo", "--clip", str(clip), "--bundle", str(small_bundle), "--out", str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {"timeline.jsonl", "timeline.png", "report.html"}


def test_a_demo_without_a_bundle_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vaemotion.cli.demo.READY_BUNDLE", Path("models/another"))
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "vaemotion: error: no bundle at 'models/another': give one with --bundle, or run from the checkout\n"
    )


@pytest.mark.parametrize("pace", ["max", "real"])
def test_without_llama_cpp_a_run_gives_the_same_readings_and_says_how_to_get_narration(
    pace: str, small_bundle: Path, tmp_path: Path
) -> None:
    clip = write_work(tmp_path / "clip.mkv", 1.2)
    words = ["run", str(small_bundle), str(clip), "--pace", pace, "--out", f"jsonl:{tmp_path / 'without'}"]
    done = command_without(("llama_cpp",), *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "vaemotion: readings without narration: llama.cpp is not installed; "
        "install it with `pip install 'vaemotion[llm]'`"
    ]
    assert main([*words[:-1], f"jsonl:{tmp_path / 'with'}"]) == 0
    without, with_narration = read_timeline(tmp_path / "without"), read_timeline(tmp_path / "with")
    assert not without.narrations
    assert with_narration.narrations
    values = [[(r.time_s, r.valence, r.arousal) for r in t.readings] for t in (without, with_narration)]
    if pace == "max":
        assert values[0] == values[1]
    assert np.isfinite(values[0]).all()
    first = json.loads((tmp_path / "without").read_text().splitlines()[0])
    assert "llama.cpp is not installed" in first["engines"][-1]


def test_without_llama_cpp_a_question_is_refused_in_a_sentence(small_bundle: Path, tmp_path: Path) -> None:
    clip = write_work(tmp_path / "clip.mkv", 0.6)
    done = command_without(("llama_cpp",), "ask", str(small_bundle), str(clip), "What is this?")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'vaemotion[llm]'" in done.stderr
