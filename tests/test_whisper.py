"""Whisper's encoder at random weights: from a folder through stage 1, and in a bundle that runs."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.fp16 import half_precision
from calibration.qdq import SCHEMES, blocks, quantize, weight_products
from calibration.ranges import observed, session_of
from export.predictors import TorchEngine
from export.to_onnx import device_parts, export_onnx
from runtime.commands.timeline.read import read_timeline
from runtime.engines.open import OnnxRuntimeEngine
from runtime.perception.predictor import open_predictor
from tests.media import write_wav
from tests.tiny import tiny_config, tiny_model
from tests.whisper_folder import write_whisper
from vaemotion.cli.main import main
from vaemotion.contract.audio import SAMPLE_RATE_HZ, WHISPER_LOG_MEL, log_mel
from vaemotion.contract.bundle import (
    Component,
    component_path,
    read_golden,
    read_manifest,
    sha256_of,
    write_manifest,
)
from vaemotion.contract.front_end import FrontEnd, audio_window, window_at
from vaemotion.data.art.art import sample_work, synthesize, work_seed
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.model.audio_encoders import WhisperEncoder
from vaemotion.model.audio_pathway import AudioPathway, AudioPathwayConfig
from vaemotion.model.checkpoint import (
    COMPONENT_DTYPE,
    load_checkpoint,
    round_in_place,
)
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.vg_align import with_audio_pathway, with_pretrained_audio_encoder

# Over the small model's window of 1 s; it has five audio tokens.
WHISPER = {"kind": "whisper", "frames": 100, "n_mels": 80, "width": 32, "layers": 2, "heads": 2, "mlp": 64}
SAME_AFFECT = 1e-4


def windows(front_end: FrontEnd, count: int) -> np.ndarray:
    """Return the log-mel of windows of procedural works, (count, frames, mels); the first is not full."""
    works = [sample_work(work_seed("validation", index)) for index in range(count)]
    ends_s = [0.6, *[1.0] * (count - 1)]
    return np.stack(
        [audio_window(synthesize(w, s), s, front_end) for w, s in zip(works, ends_s, strict=True)]
    )


@pytest.fixture(scope="module")
def model(small_checkpoint: Path) -> VAEmotionLLM:
    """Return the small model with Whisper's encoder and log-mel instead of its own."""
    model = load_checkpoint(small_checkpoint)
    audio = AudioPathwayConfig.of({**WHISPER, "steps_per_token": 10})
    torch.manual_seed(1)
    model.audio = AudioPathway(audio, model.width).eval()
    round_in_place(model.audio, COMPONENT_DTYPE["audio"])
    front_end = replace(model.config.front_end, log_mel=WHISPER_LOG_MEL)
    model.config = replace(model.config, front_end=front_end, audio=audio)
    return model


@pytest.fixture(scope="module")
def bundle(model: VAEmotionLLM, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small model's bundle with this audio encoder and front end, and their golden vectors."""
    bundle = tmp_path_factory.mktemp("whisper") / "bundle"
    shutil.copytree(small_bundle, bundle)
    manifest = replace(read_manifest(bundle), front_end=model.config.front_end)
    part = device_parts(model)["audio_encoder"]
    encoder, golden_file = manifest.component("audio_encoder", "fp32"), manifest.component("golden")
    inputs, outputs = export_onnx(part, component_path(bundle, encoder))

    golden = read_golden(bundle, manifest)
    heard = windows(manifest.front_end, 1)
    golden["log_mel/output"] = log_mel(golden["log_mel/samples"], WHISPER_LOG_MEL)
    golden["audio_encoder/in/log_mel"] = heard
    golden["audio_encoder/out/tokens"] = TorchEngine(part).run({"log_mel": heard})["tokens"]
    np.savez(component_path(bundle, golden_file), **golden)

    def as_written(component: Component) -> Component:
        path = component_path(bundle, component)
        return replace(component, sha256=sha256_of(path), bytes=path.stat().st_size)

    written = {
        encoder: replace(as_written(encoder), inputs=inputs, outputs=outputs),
        golden_file: as_written(golden_file),
    }
    write_manifest(
        bundle, replace(manifest, components=tuple(written.get(c, c) for c in manifest.components))
    )
    return bundle


@pytest.fixture(scope="module")
def exported(bundle: Path) -> onnx.ModelProto:
    return onnx.load(component_path(bundle, read_manifest(bundle).component("audio_encoder", "fp32")))


def test_stage_1_starts_from_the_folders_encoder_and_trains_it(tmp_path: Path) -> None:
    """Two tokens of half a second in the window of 1 s, or as many as the configuration says."""
    whisper = write_whisper(tmp_path)
    settings = [f"log_mel.{name}={value}" for name, value in asdict(WHISPER_LOG_MEL).items()]
    for steps_per_token, n_tokens in ((None, 2), (10, 5)):
        given = [] if steps_per_token is None else [f"audio_encoder.steps_per_token={steps_per_token}"]
        config, weights = with_pretrained_audio_encoder(tmp_path, tiny_config(*settings, *given))
        base = tiny_model(audio=False, adapter=False)
        front_end = FrontEnd(config.log_mel, config.image, config.windows)
        base.config = replace(base.config, front_end=front_end)
        pathway = with_audio_pathway(base, config).audio_pathway
        pathway.encoder.load_state_dict(weights)
        tokens = pathway(torch.from_numpy(windows(front_end, 2)))
        assert tokens.shape == (2, n_tokens, 64)
        tokens.square().sum().backward()
        encoder = pathway.encoder
        assert isinstance(encoder, WhisperEncoder)
        assert encoder.whisper.conv1.weight.grad.abs().max() > 0
        published = whisper.encoder.conv1.weight
        assert torch.equal(encoder.whisper.conv1.weight, published)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_engine_is_standard_onnx_and_hears_as_torch_does(
    model: VAEmotionLLM, bundle: Path, exported: onnx.ModelProto, batch: int
) -> None:
    assert {node.domain for node in exported.graph.node} <= {"", "ai.onnx"}
    component = read_manifest(bundle).component("audio_encoder", "fp32")
    heard = {"log_mel": windows(model.config.front_end, batch)}
    expected = TorchEngine(device_parts(model)["audio_encoder"]).run(heard)["tokens"]
    got = OnnxRuntimeEngine(component_path(bundle, component), component, threads=1).run(heard)["tokens"]
    difference = np.abs(got - expected)
    print(f"\nWhisper's engine at batch {batch}: max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert got.shape == (batch, 5, 64)
    assert difference.max() <= 1e-4


def test_half_precision_and_int8_are_made_of_it(model: VAEmotionLLM, exported: onnx.ModelProto) -> None:
    """Every product of a layer and the projector may become INT8; the convolutions stay as they are."""
    heard = {"log_mel": windows(model.config.front_end, 3)}
    [expected] = session_of(exported).run(None, heard)
    [half] = session_of(half_precision(exported, [])).run(None, heard)
    assert np.abs(half - expected).max() <= 0.02

    chosen = blocks(weight_products(exported))
    layers = {f"encoder.whisper.layers.{k}.{part}" for k in range(2) for part in ("self_attn", "fc1", "fc2")}
    assert set(chosen) == layers | {"projector.0", "projector.2"}
    histograms = observed(exported, [p.activation for p in weight_products(exported)], [heard])
    for scheme in SCHEMES:
        quantized = quantize(exported, histograms, "max", scheme, chosen)
        [coarse] = session_of(quantized).run(None, heard)
        error = np.square(coarse - expected).mean() / np.square(expected).mean()
        print(f"\n{scheme}: signal to noise {-10 * np.log10(error):.1f} dB")
        assert error <= 1e-2


def test_the_bundles_golden_front_end_and_engines_are_verified(bundle: Path) -> None:
    assert main(["verify", str(bundle)]) == 0


def test_a_stream_of_sound_is_read_as_its_windows_are(bundle: Path, tmp_path: Path) -> None:
    samples = synthesize(sample_work(work_seed("validation", 3)), 2.5)
    clip = write_wav(tmp_path / "sound.wav", samples, SAMPLE_RATE_HZ)
    assert (
        main(["run", str(bundle), str(clip), "--pace", "max", "--out", f"jsonl:{tmp_path / 'timeline'}"]) == 0
    )
    readings = read_timeline(tmp_path / "timeline").readings
    assert [reading.time_s for reading in readings] == pytest.approx([k / 10 for k in range(4, 26)])
    media = load_clip(Media(audio="sound.wav"), tmp_path)
    with open_predictor(bundle) as predictor:
        for reading in readings:
            window = window_at(media, reading.time_s, "audio", predictor.constants.front_end)
            affect, _ = predictor.adapt(predictor.encode(window))
            assert reading.valence == pytest.approx(affect.valence, abs=SAME_AFFECT)
            assert reading.arousal == pytest.approx(affect.arousal, abs=SAME_AFFECT)
