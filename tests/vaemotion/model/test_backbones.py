"""Encoders compared with the classes of ``transformers`` that they replace."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_config, tiny_model
from vaemotion.model.audio_encoders import AstEncoder, build_audio_encoder
from vaemotion.model.audio_pathway import AudioPathway, AudioPathwayConfig
from vaemotion.model.backbones import VisionEncoder, baked_position_ids, build_vlm
from vaemotion.training.base_vlm import vlm_config

AST = {
    "kind": "ast",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_length": 208,
    "num_mel_bins": 64,
}


def pixels(batch: int, side_px: int = 24) -> torch.Tensor:
    return torch.rand(batch, 3, side_px, side_px, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_vision_encoder_is_the_vision_model_and_the_connector() -> None:
    model = tiny_model(audio=False, adapter=False)
    with torch.no_grad():
        ours = model.vision(pixels(3))
        theirs = model.base.model.connector(model.base.model.vision_model(pixels(3)).last_hidden_state)
    difference = (ours - theirs).abs()
    print(f"\nvision parity: max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert ours.shape == (3, 4, 64)
    assert difference.max() <= 1e-5 * theirs.abs().max()


def test_an_all_zero_image_is_encoded_like_any_other() -> None:
    model = tiny_model(audio=False, adapter=False)
    mixed = pixels(3)
    mixed[1] = 0.0
    with torch.no_grad():
        together, alone = model.vision(mixed), model.vision(torch.zeros(1, 3, 24, 24))
    assert together.shape == (3, 4, 64)
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[1], together[0], atol=1e-2)


@pytest.mark.parametrize("side", [4, 7, 8, 12, 32])
def test_baked_position_ids_are_those_that_transformers_computes(side: int) -> None:
    config = vlm_config(tiny_config().vlm, 6 * side)
    embeddings = build_vlm({**config, "scale_factor": 1}).model.vision_model.embeddings
    seen: list[torch.Tensor] = []
    embeddings.position_embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    embeddings(torch.zeros(1, 3, 6 * side, 6 * side), torch.ones(1, side, side, dtype=torch.bool))
    assert torch.equal(baked_position_ids(side), seen[0][0])


def test_the_position_ids_are_no_weights() -> None:
    encoder = VisionEncoder(build_vlm(vlm_config(tiny_config().vlm, 24)))
    assert "position_ids" not in encoder.state_dict()


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
    with pytest.raises(ValueError, match="'conv' or 'ast', got 'whisper'"):
        build_audio_encoder({"kind": "whisper"})
