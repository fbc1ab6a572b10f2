"""Families of vision-language models, compared with the classes of ``transformers`` that they replace."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_config, tiny_model
from vaemotion.contract.errors import UsageError
from vaemotion.model.families import FAMILIES, family_of
from vaemotion.model.families.smolvlm import SMOLVLM, VisionEncoder, baked_position_ids
from vaemotion.training.base_vlm import vlm_config


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
    embeddings = SMOLVLM.build({**config, "scale_factor": 1}).model.vision_model.embeddings
    seen: list[torch.Tensor] = []
    embeddings.position_embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    embeddings(torch.zeros(1, 3, 6 * side, 6 * side), torch.ones(1, side, side, dtype=torch.bool))
    assert torch.equal(baked_position_ids(side), seen[0][0])


def test_the_position_ids_are_no_weights() -> None:
    encoder = VisionEncoder(SMOLVLM.build(vlm_config(tiny_config().vlm, 24)))
    assert "position_ids" not in encoder.state_dict()


@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_a_familys_parts_give_what_its_own_class_gives(model_type: str) -> None:
    torch.manual_seed(0)
    family = FAMILIES[model_type]
    config = {**vlm_config(tiny_config().vlm, 24), "model_type": model_type}
    network = family.build(config).eval()
    parts = family.parts(network, 24)
    with torch.no_grad():
        own = network.model.get_image_features(pixels(3)[:, None]).pooler_output
        ours = parts.vision(pixels(3))
        rows = torch.randn(2, 9, parts.width)
        logits = parts.head(parts.decoder(inputs_embeds=rows).last_hidden_state)
        expected = network(inputs_embeds=rows).logits
    assert ours.shape == (3, parts.tokens_per_picture, parts.width)
    torch.testing.assert_close(ours, torch.stack(list(own)).reshape(ours.shape), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected)
    assert set(parts.decoder_tensors()) == set(parts.decoder.state_dict())  # tied: no head of its own


def test_a_config_that_names_half_precision_is_built_in_float32() -> None:
    config = vlm_config(tiny_config().vlm, 24)
    config["text_config"] = {**config["text_config"], "dtype": "bfloat16"}
    for values in (config, {**config, "dtype": "bfloat16"}, {**config, "torch_dtype": "float16"}):
        assert {p.dtype for p in SMOLVLM.build(values).parameters()} == {torch.float32}


def test_an_unknown_family_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match=r"'llava'.*smolvlm \(SmolVLM2\)"):
        family_of({"model_type": "llava"})
    assert family_of({}) is SMOLVLM
