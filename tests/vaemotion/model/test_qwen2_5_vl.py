"""Qwen2.5-VL at a small size, compared with transformers' own class from pixels to logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2VLImageProcessor

from tests.tiny import randomize, tiny_config, tiny_tokenizer
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.model.audio_pathway import AudioPathwayConfig
from vaemotion.model.checkpoint import COMPONENT_DTYPE, components, round_in_place, save_checkpoint
from vaemotion.model.checkpoint_config import ModelConfig
from vaemotion.model.emo_adapter import EmoAdapterConfig
from vaemotion.model.vaemotion_llm import VAEmotionLLM

SIDE_PX = 64  # 16 patches of 4 px a side, 8 × 8 merged groups, 2 × 2 windows
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 3,
    "vision_start_token_id": 1,
    "vision_end_token_id": 2,
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 32,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
    "text_config": {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # As published. llama.cpp reads none for this decoder and computes with 0 (docs/log.md).
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "bos_token_id": 0,
        "eos_token_id": 4,
        "pad_token_id": 0,
    },
}
TEMPLATE = PromptTemplate(
    prefix="<|im_start|>user\n",
    before_picture="<|im_start|>",
    after_picture="<|im_end|>",
    question="{question}<|im_end|>\n<|im_start|>assistant\n",
    answer="{answer}",
    stop="<end_of_utterance>",
)


def tiny_qwen(*, complete: bool = False) -> VAEmotionLLM:
    """Build a Qwen2.5-VL with random weights that do not vanish, whose pictures have 64 tokens.

    ``complete``: with audio pathway and EmoAdapter.
    """
    torch.manual_seed(0)
    small = tiny_config()
    sizes = ModelConfig(
        CONFIG,
        FrontEnd(small.log_mel, replace(small.image, side_px=SIDE_PX), small.windows),
        TEMPLATE,
        audio=AudioPathwayConfig(small.audio_encoder) if complete else None,
        adapter=EmoAdapterConfig() if complete else None,
    )
    model = VAEmotionLLM(sizes, tiny_tokenizer()).eval()
    with torch.no_grad():
        for parameter in model.base.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model


def save_tiny_qwen(folder: Path) -> Path:
    """Save a complete checkpoint on a Qwen2.5-VL, its weights rounded as the stages round them."""
    model = tiny_qwen(complete=True)
    randomize(model.emo_adapter)
    for name, part in components(model).items():
        round_in_place(part, COMPONENT_DTYPE[name])
    save_checkpoint(model, folder, {"name": "qwen", "align": {}}, "Apache-2.0")
    return folder


def frames(count: int) -> torch.Tensor:
    """Random frames as the front end normalizes them, (count, 3, side, side)."""
    return torch.rand(count, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_vision_encoder_gives_the_tokens_of_the_published_processor_and_tower() -> None:
    model, pixels = tiny_qwen(), frames(3)
    processor = Qwen2VLImageProcessor(patch_size=4, merge_size=2, do_resize=False)
    prepared = processor([(picture * 0.5 + 0.5) for picture in pixels], return_tensors="pt", do_rescale=False)
    with torch.no_grad():
        expected = model.base.model.visual(prepared["pixel_values"], prepared["image_grid_thw"]).pooler_output
        got = model.vision(pixels)
    assert got.shape == (3, 64, 64)
    torch.testing.assert_close(got.flatten(0, 1), expected, atol=2e-5, rtol=1e-4)


def whole_model_logits(model: VAEmotionLLM, pixels: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Compute the logits of transformers' own forward, which places the pictures itself, (n, vocab)."""
    grid = torch.tensor([[1, 16, 16]]).expand(len(pixels), -1)
    visual = model.vision(pixels).flatten(0, 1)
    tokens = torch.tensor([ids])
    is_image = tokens == CONFIG["image_token_id"]
    embedded = model.embed(tokens).masked_scatter(is_image[..., None], visual)
    positions, _ = model.base.model.get_rope_index(tokens, is_image.int(), image_grid_thw=grid)
    return model.base(inputs_embeds=embedded, position_ids=positions).logits[0]


@torch.no_grad()
def test_answers_about_two_pictures_have_the_logits_of_the_whole_model() -> None:
    model, pixels = tiny_qwen(), frames(2)
    text = model.text_batch(["What is this?"], ["a sea"])
    media = model.media_embeddings(model.vision(pixels).flatten(0, 1)[None], None, 1)
    got = model.answer_logits(media, text)
    picture = [*model.token_ids(TEMPLATE.before_picture), *[3] * 64, *model.token_ids(TEMPLATE.after_picture)]
    ids = [*model.token_ids(TEMPLATE.prefix), *picture, *picture, *text.ids[0].tolist()]
    whole = whole_model_logits(model, pixels, ids)
    n = int(text.answer.sum())
    torch.testing.assert_close(got, whole[-n - 1 : -1], atol=1e-4, rtol=1e-4)
    flat = model.backbone.decoder(
        inputs_embeds=torch.cat([media.embeddings, model.embed(text.ids)], dim=1)
    ).last_hidden_state
    rows_counted = model.backbone.head(flat)[0, -n - 1 : -1]
    assert (rows_counted - got).abs().max() > 1e-2  # positions matter, or the test could not fail


@torch.no_grad()
def test_the_cache_goes_on_at_the_place_behind_the_picture() -> None:
    model = tiny_qwen()
    media = model.media_embeddings(model.vision(frames(1)), None, 1)
    question, options = "What is this?", ["a sea", "rain", "an old dog"]
    scores = model.option_scores(media, question, options)[0]
    for option, score in zip(options, scores, strict=True):
        text = model.text_batch([question], [option])
        expected = model.answer_logits(media, text).log_softmax(-1).gather(1, text.ids[text.answer][:, None])
        assert abs(float(expected.mean() - score)) < 1e-4
    said: list[int] = []
    for _ in range(6):  # without a cache
        rows = model.embed(torch.tensor([*model.question_ids(question), *said]))[None]
        said.append(int(model.backbone.head(model.states(media, rows).last_hidden_state[0, -1]).argmax()))
    [answer] = model.generate(media, question, max_tokens=6)
    assert answer.text == model.tokenizer.decode(said).strip()


def test_a_side_that_is_no_multiple_of_the_windows_is_refused_with_one_that_is() -> None:
    small = tiny_config()
    front_end = FrontEnd(small.log_mel, replace(small.image, side_px=72), small.windows)
    with pytest.raises(UsageError, match=r"windows of 32 px.*image\.side_px=64"):
        VAEmotionLLM(ModelConfig(CONFIG, front_end, TEMPLATE), tiny_tokenizer())
