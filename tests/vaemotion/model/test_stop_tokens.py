"""Every token that ends an answer ends it, in torch and on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from export.predictors import checkpoint_predictor
from runtime.perception.predictor import Tokens, generate_text, open_predictor
from tests.tiny import tiny_model
from vaemotion.contract.bundle import read_manifest
from vaemotion.model.checkpoint import load_checkpoint
from vaemotion.model.vaemotion_llm import VAEmotionLLM

QUESTION, MOST = "Which emotion does it express?", 24


def with_stop(model: VAEmotionLLM, token: str) -> VAEmotionLLM:
    """Return the same model with a further token that ends answers."""
    prompt = replace(model.config.prompt, stops=(token,))
    changed = VAEmotionLLM(replace(model.config, prompt=prompt), model.tokenizer)
    changed.load_state_dict(model.state_dict())
    return changed.eval()


def test_a_further_stop_token_ends_an_answer_in_torch_and_by_the_predictor() -> None:
    model = tiny_model()
    visual = torch.randn(
        1, 2 * model.tokens_per_frame, model.width, generator=torch.Generator().manual_seed(0)
    )
    predictor = checkpoint_predictor(model)
    tokens = Tokens(
        visual.numpy().reshape(2, model.tokens_per_frame, model.width),
        np.zeros(2, np.float32),
        np.zeros((0, model.width), np.float32),
        0.0,
    )
    prompt = predictor.prompt(tokens, QUESTION)
    said = predictor.language_model.generate(prompt, max_tokens=MOST, stop_ids=model.stop_ids).token_ids
    # The first token that is its own text, such as a stop token is, and what comes before it.
    texts = [model.tokenizer.decode([number]) for number in said]
    place = next(k for k in range(1, len(said)) if model.token_ids(texts[k]) == [said[k]] != [said[0]])
    place = said.index(said[place])
    expected = model.tokenizer.decode(list(said[:place])).strip()

    changed = with_stop(model, texts[place])
    assert changed.stop_ids == (model.stop_id, said[place])
    media = changed.media_embeddings(visual, None, 1)
    [answer] = changed.generate(media, QUESTION, max_tokens=MOST)
    assert (answer.text, answer.whole) == (expected, True)
    assert generate_text(checkpoint_predictor(changed), prompt, MOST) == (expected, True)
    assert not model.generate(media, QUESTION, max_tokens=place + 1)[0].whole


def test_a_bundle_has_the_stop_tokens_of_its_checkpoint(small_checkpoint: Path, small_bundle: Path) -> None:
    model = load_checkpoint(small_checkpoint)
    assert read_manifest(small_bundle).stop_token_ids == model.stop_ids
    with open_predictor(small_bundle) as predictor:
        assert predictor.constants.stop_token_ids == model.stop_ids
