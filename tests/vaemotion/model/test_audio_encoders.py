"""Audio encoders compared with the classes of ``transformers`` that they replace."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.models.whisper import modeling_whisper

from tests.tiny import CONFIG_FILE, tiny_config
from tests.whisper_folder import write_whisper
from vaemotion.contract.audio import SAMPLE_RATE_HZ, WHISPER_LOG_MEL
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd, audio_window
from vaemotion.contract.windows import WindowConfig
from vaemotion.model.audio_encoders import AstEncoder, WhisperEncoder, build_audio_encoder
from vaemotion.model.audio_pathway import AudioPathway, AudioPathwayConfig
from vaemotion.model.weights_folder import read_folder_config
from vaemotion.model.whisper import read_whisper
from vaemotion.training.config import read_training_config

AST = {
    "kind": "ast",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_length": 208,
    "num_mel_bins": 64,
}
SMALL_WHISPER = {"n_mels": 80, "width": 32, "layers": 2, "heads": 2, "mlp": 64}
WHISPER_WINDOW = FrontEnd(WHISPER_LOG_MEL, windows=WindowConfig(audio_window_s=2.0))


def test_ast_becomes_tokens_of_the_language_model() -> None:
    pathway = AudioPathway(AudioPathwayConfig(AST, hidden=48), 64).eval()
    tokens = pathway(torch.randn(2, 208, 64))
    assert pathway.n_tokens == 4  # (208 - 16) / 10 + 1 = 20 steps, 5 in a token
    assert tokens.shape == (2, 4, 64)


def test_ast_steps_are_the_mean_over_the_frequency_rows() -> None:
    torch.manual_seed(0)
    encoder, steps, width = build_audio_encoder(AST)
    assert isinstance(encoder, AstEncoder)
    encoder.eval()
    mel = torch.randn(2, 208, 64)
    with torch.no_grad():
        hidden = encoder.ast(mel).last_hidden_state
        ours = encoder(mel)
    rows = 5  # (64 - 16) / 10 + 1
    assert (steps, width) == (20, 32)
    # [CLS], distillation, then row by row from low to high frequency
    assert hidden.shape == (2, 2 + rows * steps, 32)
    for step in range(steps):
        column = [hidden[:, 2 + row * steps + step] for row in range(rows)]
        torch.testing.assert_close(ours[:, step], sum(column) / rows, atol=1e-6, rtol=1e-5)


def test_ast_patches_run_through_time_within_a_row() -> None:
    """A late change of the input reaches the last patch of each row, measured on the patch embedding."""
    torch.manual_seed(0)
    encoder = AstEncoder(build_audio_encoder(AST)[0].ast.config).eval()
    quiet = torch.zeros(1, 208, 64)
    late = quiet.clone()
    late[:, -4:] = 1.0
    patches = encoder.ast.embeddings.patch_embeddings
    changed = (patches(late) - patches(quiet)).abs().sum(-1)[0].unflatten(0, (5, 20)) > 1e-6
    assert changed[:, -1].all()
    assert not changed[:, :-1].any()


def tiny_conv() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_audio_encoder(tiny_config().audio_encoder)[0]


def test_the_convolutional_encoder_keeps_the_contract() -> None:
    encoder, steps, width = build_audio_encoder(tiny_config().audio_encoder)
    assert encoder(torch.randn(3, 50, 32)).shape == (3, steps, width) == (3, 25, 32)


@pytest.mark.parametrize("training", [False, True])
def test_a_sounds_encoding_does_not_depend_on_the_rest_of_the_batch(training: bool) -> None:
    encoder = tiny_conv().train(training)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            module.train(False)  # dropout draws by position in the batch; nothing else may depend on it
            if isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = 0.0
    mel = torch.randn(4, 50, 32)
    others = torch.cat([mel[:1], 100 * torch.randn(3, 50, 32)])
    with torch.no_grad():
        torch.testing.assert_close(encoder(mel)[0], encoder(others)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder(mel)[0], encoder(mel[:1])[0], atol=1e-5, rtol=1e-5)


def test_an_odd_number_of_frames_fits_too() -> None:
    encoder, steps, _ = build_audio_encoder({**tiny_config().audio_encoder, "frames": 51, "n_mels": 31})
    assert encoder(torch.randn(1, 51, 31)).shape[1] == steps == 26


def test_audio_tokens_start_as_long_as_visual_ones_and_delimiters_as_text() -> None:
    pathway = AudioPathway(AudioPathwayConfig(tiny_config().audio_encoder), 64).eval()
    pathway.match_norm(visual_token_norm=5.0, text_embedding_norm=0.3)
    tokens = pathway(torch.randn(8, 50, 32))
    assert tokens.norm(dim=-1).mean().item() == pytest.approx(5.0, rel=0.02)
    torch.testing.assert_close(pathway.delimiters.norm(dim=1), torch.tensor([0.3, 0.3]))


def test_a_token_is_made_of_five_neighbouring_steps() -> None:
    pathway = AudioPathway(AudioPathwayConfig(tiny_config().audio_encoder), 64).eval()
    steps = torch.randn(2, 25, 32)
    pathway.encoder.forward = lambda _: steps  # type: ignore[method-assign]
    tokens = pathway(torch.zeros(2, 50, 32))
    for token in range(5):
        concatenated = torch.cat([steps[:, 5 * token + k] for k in range(5)], dim=-1)
        torch.testing.assert_close(tokens[:, token], pathway.projector(concatenated), atol=1e-6, rtol=1e-5)


def test_an_unknown_kind_of_encoder_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'conv', 'ast' or 'whisper', got 'wav2vec2'"):
        build_audio_encoder({"kind": "wav2vec2"})


def test_a_size_that_whisper_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="hidden_size"):
        build_audio_encoder({"kind": "whisper", "hidden_size": 64})


def test_whispers_encoder_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    encoder, steps, width = build_audio_encoder({"kind": "whisper", "frames": 100, **SMALL_WHISPER})
    assert isinstance(encoder, WhisperEncoder)
    encoder.eval()
    mel = torch.randn(3, 100, 80)
    with torch.no_grad():
        ours, theirs = encoder(mel), encoder.whisper(mel.transpose(1, 2)).last_hidden_state
    assert ours.shape == (3, steps, width) == (3, 50, 32)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("frames", "steps"), [(99, 50), (100, 50), (101, 51)])
def test_every_window_fits_whispers_positions(frames: int, steps: int) -> None:
    encoder, counted, _ = build_audio_encoder({"kind": "whisper", "frames": frames, **SMALL_WHISPER})
    assert encoder(torch.randn(1, frames, 80)).shape[1] == counted == steps


def test_a_token_of_whisper_is_half_a_second_unless_the_section_says_otherwise() -> None:
    whisper, conv = {"kind": "whisper", "frames": 1000, **SMALL_WHISPER}, tiny_config().audio_encoder
    ten_s = AudioPathway(AudioPathwayConfig.of(whisper), 16)
    assert (ten_s.config.steps_per_token, ten_s.n_tokens) == (25, 20)
    assert AudioPathwayConfig.of(conv) == AudioPathwayConfig(conv)
    asked = AudioPathwayConfig.of({**whisper, "steps_per_token": 50})
    assert (asked.steps_per_token, asked.encoder) == (50, whisper)


def read(folder: Path, front_end: FrontEnd = WHISPER_WINDOW) -> torch.nn.Module:
    """Build the encoder of a Whisper's folder as stage 1 does."""
    config, weights = read_whisper(folder, read_folder_config(folder, "a Whisper"), front_end)
    encoder = build_audio_encoder(config)[0]
    encoder.load_state_dict(weights)
    return encoder.eval()


@pytest.mark.parametrize(
    "kind", [WhisperModel, WhisperForConditionalGeneration, WhisperForAudioClassification]
)
def test_a_folders_encoder_hears_what_transformers_hears(kind: Any, tmp_path: Path) -> None:
    """From the same samples, through both feature extractors, over the shorter window."""
    model = write_whisper(tmp_path, kind)
    whole = getattr(model, "model", model).encoder
    short = modeling_whisper.WhisperEncoder(read(tmp_path).whisper.config).eval()
    cut = {**whole.state_dict(), "embed_positions.weight": whole.embed_positions.weight[:100]}
    short.load_state_dict(cut)
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 2 * SAMPLE_RATE_HZ).astype(np.float32)
    extracted = WhisperFeatureExtractor(chunk_length=2)(
        samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = short(extracted["input_features"]).last_hidden_state
        ours = read(tmp_path)(torch.from_numpy(audio_window(samples, 2.0, WHISPER_WINDOW))[None])
    difference = (ours - theirs).abs().max()
    print(f"\nWhisper parity from samples: max {difference:.2e}, scale {theirs.abs().max():.1f}")
    assert difference <= 1e-4


def test_an_encoder_that_was_saved_alone_is_read_too(tmp_path: Path) -> None:
    whole = write_whisper(tmp_path / "whole")
    whole.encoder.save_pretrained(tmp_path / "alone")
    for ours, theirs in zip(
        read(tmp_path / "alone").parameters(), read(tmp_path / "whole").parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("encoder.layers.1.fc1.weight"), r"1 tensor is missing \(layers\.1\.fc1\.weight\)"),
        (lambda t: t.update({"encoder.layers.2.fc1.bias": torch.zeros(64)}), "1 tensor is unknown"),
        (
            lambda t: t.update({"encoder.conv1.bias": torch.zeros(31)}),
            r"conv1\.bias: \[31\] instead of \[32\]",
        ),
        (
            lambda t: t.update({"encoder.embed_positions.weight": torch.zeros(140, 32)}),
            "holds 140 positions, its config.json says 150",
        ),
    ],
    ids=["missing", "unknown", "shape", "positions"],
)
def test_weights_that_are_not_those_of_the_configuration_are_refused(
    damage: Any, message: str, tmp_path: Path
) -> None:
    write_whisper(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UsageError, match=message):
        read(tmp_path)


def test_a_configuration_without_an_encoder_is_refused(tmp_path: Path) -> None:
    write_whisper(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["encoder_layers"]
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"does not describe a Whisper \('encoder_layers'\)"):
        read(tmp_path)


def test_a_log_mel_that_is_not_whispers_is_refused_with_the_settings_that_help(tmp_path: Path) -> None:
    write_whisper(tmp_path)
    with pytest.raises(UsageError) as refused:
        read(tmp_path, FrontEnd())
    settings = re.findall(r"--set (\S+)", str(refused.value))
    config = read_training_config(CONFIG_FILE, [*settings, "windows.audio_window_s=2.0"])
    read(tmp_path, FrontEnd(config.log_mel, config.image, config.windows))


def test_a_window_longer_than_whispers_is_refused_with_its_length(tmp_path: Path) -> None:
    write_whisper(tmp_path)
    with pytest.raises(UsageError, match=r"at most 3 s of sound; set windows\.audio_window_s"):
        read(tmp_path, replace(WHISPER_WINDOW, windows=WindowConfig(audio_window_s=3.5)))


def test_the_shipped_configuration_fits_the_published_whispers() -> None:
    config = read_training_config(CONFIG_FILE.with_name("smolvlm2-500m-whisper.toml"))
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    assert config.log_mel == WHISPER_LOG_MEL
    assert front_end.audio_window_frames == 1000
    assert AudioPathway(AudioPathwayConfig.of({**config.audio_encoder, "kind": "whisper"}), 8).n_tokens == 20
