"""The memory that ``vaemotion doctor`` foresees, against that of real runs at both paces."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.engine_memory import engine_memory, with_memory
from export.half_weights import halve_exact_weights
from export.to_onnx import Part, export_onnx
from runtime.commands.doctor.forecast import Machine, forecast, needed_bytes
from runtime.perception.ticks import ACTIVATION_COPIES, BATCH_TICKS, batch_ticks
from tests.media import write_work
from tests.paths import ROOT
from vaemotion.contract.bundle import Manifest, read_manifest, sha256_of, write_manifest
from vaemotion.model.families import family_of

SHIPPED = ROOT / "models" / "vaemotion-tiny-bundle"
MIB = 2**20
HEADS, SIDE_PX = 20, 24
PATCHES = SIDE_PX**2
HIDDEN = 4096
RUN = """
import sys
from runtime.machine.facts import peak_memory_bytes
from vaemotion.cli.main import main
code = main(sys.argv[1:])
print(peak_memory_bytes())
sys.exit(code)
"""


def write_vision_encoder(file: Path, tokens: int, width: int) -> None:
    """Export a random encoder of two layers, whose scores are large: each pixel is a patch, in many heads."""
    config = {
        "model_type": "smolvlm",
        "vision_config": {
            "hidden_size": 4 * HEADS,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "image_size": SIDE_PX,
            "patch_size": 1,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 16,
        },
        "scale_factor": round(SIDE_PX / tokens**0.5),
        "image_token_id": 3,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    family = family_of(config)
    vision = family.parts(family.build(config), SIDE_PX).vision
    export_onnx(Part(vision, {"pixels": torch.zeros(2, 3, SIDE_PX, SIDE_PX)}, ("tokens",)), file)


def write_audio_encoder(file: Path, frames: int, mels: int, tokens: int, width: int) -> None:
    """Write a random encoder with 160 MiB of weights, which are stored in half of it."""
    draw = np.random.default_rng(0).standard_normal
    sizes = (frames * mels, HIDDEN, HIDDEN, HIDDEN, tokens * width)
    tables = [
        numpy_helper.from_array(np.array(shape, np.int64), name)
        for name, shape in {"flat": (0, -1), "wanted": (0, tokens, width)}.items()
    ]
    nodes = [helper.make_node("Reshape", ["log_mel", "flat"], ["hidden0"])]
    for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight = draw((inputs, outputs), np.float32) / inputs**0.5
        weight = weight.astype(np.float16).astype(np.float32)
        tables.append(numpy_helper.from_array(weight, f"weight{k}"))
        nodes.append(helper.make_node("MatMul", [f"hidden{k}", f"weight{k}"], [f"hidden{k + 1}"]))
    nodes.append(helper.make_node("Reshape", [f"hidden{len(sizes) - 1}", "wanted"], ["tokens"]))
    graph = helper.make_graph(
        nodes,
        "audio",
        [helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", frames, mels])],
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", tokens, width])],
        tables,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert halve_exact_weights(model) == 4
    onnx.save(model, str(file))


@pytest.fixture(scope="module")
def large_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the small bundle with larger encoders of the same inputs and outputs."""
    folder = shutil.copytree(small_bundle, tmp_path_factory.mktemp("large") / "bundle")
    manifest = read_manifest(folder)
    width = manifest.token_width
    vision, audio = (manifest.component(role) for role in ("vision_encoder", "audio_encoder"))
    for component in (vision, audio):
        (folder / component.path).unlink()  # it may be a link to a step of the export
    write_vision_encoder(folder / vision.path, manifest.tokens_per_frame, width)
    _, frames, mels = (int(size) if size != "batch" else 0 for size in audio.inputs[0].shape)
    write_audio_encoder(folder / audio.path, frames, mels, manifest.audio_tokens, width)
    components = [
        replace(c, sha256=sha256_of(folder / c.path), bytes=(folder / c.path).stat().st_size)
        for c in manifest.components
    ]
    write_manifest(folder, replace(manifest, components=with_memory(folder, components)))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("clip") / "work.mkv", 2.0)


def peak_bytes(bundle: Path, clip: Path, pace: str, folder: Path) -> int:
    """Run a file in a process of its own and return the largest memory that it held."""
    out = f"jsonl:{folder / 'timeline.jsonl'}"
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", str(bundle), str(clip), "--pace", pace, "--out", out],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "timeline.jsonl").read_text().count('"reading"') > 0
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("pace", "ticks"), [("real", 1), ("max", BATCH_TICKS)])
@pytest.mark.parametrize("name", ["shipped", "large"])
def test_the_memory_of_a_run_is_foreseen_within_a_quarter(
    name: str, pace: str, ticks: int, large_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    bundle = SHIPPED if name == "shipped" else large_bundle
    foreseen = needed_bytes(read_manifest(bundle), "cpu", ticks)
    measured = peak_bytes(bundle, clip, pace, tmp_path)
    print(f"{name}, {pace}: foreseen {foreseen / MIB:.0f} MiB, measured {measured / MIB:.0f} MiB")
    assert 0.75 < foreseen / measured < 1.25


def test_a_graphs_memory_is_that_of_its_scores_and_of_its_weights_in_32_bits(large_bundle: Path) -> None:
    manifest = read_manifest(large_bundle)
    vision, audio = (manifest.component(role) for role in ("vision_encoder", "audio_encoder"))
    scores = 4 * HEADS * PATCHES**2
    assert scores < vision.activation_bytes < 1.2 * scores  # softmax overwrites them
    assert audio.weights_bytes == pytest.approx(2 * audio.bytes, rel=0.01)


def test_every_engine_that_an_export_writes_states_its_memory(small_bundle: Path) -> None:
    for component in read_manifest(small_bundle).components:
        stated = (component.weights_bytes, component.activation_bytes)
        if component.path.endswith(".onnx"):
            assert stated == engine_memory(small_bundle / component.path)
            assert min(stated) > 0
        else:
            assert stated == (0, 0)


def stated(manifest: Manifest, activation_bytes: int) -> Manifest:
    components = [replace(c, activation_bytes=activation_bytes) for c in manifest.components]
    return replace(manifest, components=tuple(components))


@pytest.mark.parametrize(
    ("available_mib", "ticks"), [(0, 1), (100, 1), (430, 2), (900, 4), (2**20, BATCH_TICKS)]
)
def test_a_batch_takes_at_most_half_of_the_available_memory(
    available_mib: int, ticks: int, small_bundle: Path
) -> None:
    components = stated(read_manifest(small_bundle), 100 * MIB).components
    assert batch_ticks(components, available_mib * MIB) == ticks
    assert ticks == 1 or ticks * 100 * ACTIVATION_COPIES <= available_mib / 2


def test_a_bundle_that_does_not_state_its_memory_has_full_batches(small_bundle: Path) -> None:
    assert batch_ticks(stated(read_manifest(small_bundle), 0).components, 0) == BATCH_TICKS


def test_the_forecast_for_files_at_full_pace_has_the_batches_that_fit(small_bundle: Path) -> None:
    manifest = stated(read_manifest(small_bundle), 100 * MIB)
    values: list[int] = []
    for available_mib in (700, 4000):
        machine = Machine(available_mib * MIB, 8000 * MIB, False, None, 0, 0)
        [room] = [check for check in forecast(manifest, machine) if check.name == "room in memory"]
        assert room.ok
        live, files = map(int, re.findall(r"(\d+) MiB", room.value)[:2])
        assert files < available_mib
        values += [live, files]
    assert values[0] == values[2]
    assert values[1] < values[3]


def test_a_reading_that_takes_longer_than_evidence_lasts_is_a_fault(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.commands.doctor import checks

    def found(ms: float) -> dict[str, object]:
        return {
            "engines": ["x"],
            "ms": {"vision_encoder": ms, "audio_encoder": ms},
            "asked_hz": 2.0,
            "stale_s": 1.0,
        }

    expected = {1400.0: False, 400.0: None, 100.0: True}
    for ms, ok in expected.items():
        monkeypatch.setattr(checks, "in_child", lambda *_, ms=ms, **__: found(ms))
        _, readings = checks.readings(small_bundle)
        assert (readings.name, readings.ok) == ("readings", ok)
        assert bool(readings.advice) == (ok is not True)
        if not ok:
            assert "0 readings/s" not in readings.value
            assert f"{1000 / (2 * ms):.2g} readings/s possible (target 2)" in readings.value
