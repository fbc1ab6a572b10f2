"""A decoder that puts pictures in two dimensions (M-RoPE), through llama.cpp and in torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.importance import collect_importance
from export.gguf.write import DecoderShape, GgufTokenizer, SpecialTokens, write_decoder_gguf
from export.predictors import TorchLanguageModel
from runtime.engines.language_model import LanguageModel, LanguageModelError
from tests.vaemotion.model.test_qwen2_5_vl import tiny_qwen
from vaemotion.contract.positions import text_places
from vaemotion.model.vaemotion_llm import VAEmotionLLM

Rows = np.ndarray


@pytest.fixture(scope="module")
def model() -> VAEmotionLLM:
    return tiny_qwen()


@pytest.fixture(scope="module")
def file(model: VAEmotionLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("placed") / "decoder.gguf"
    tensors = {name: tensor.numpy() for name, tensor in model.backbone.decoder_tensors().items()}
    shape = DecoderShape.from_config(model.backbone.text_config, tied=True)
    tokenizer = GgufTokenizer(model.tokenizer.to_str(), SpecialTokens(0, 4, 0))
    write_decoder_gguf(path, tensors, shape, tokenizer, file_type="F32", name="placed", license="CC0-1.0")
    return path


@pytest.fixture
def decoder(model: VAEmotionLLM, file: Path) -> Iterator[LanguageModel]:
    table = model.backbone.embedding.weight.detach().numpy()
    with LanguageModel(file, table, context_tokens=512, batch_tokens=48, f32_kv=True) as opened:
        yield opened


def picture(model: VAEmotionLLM, seed: int) -> Rows:
    grid = model.backbone.grid
    assert grid is not None
    tokens = np.random.default_rng(seed).normal(0, 0.3, (grid.tokens, model.width)).astype(np.float32)
    return np.concatenate([tokens, grid.places()], 1)


def prompt(model: VAEmotionLLM, decoder: LanguageModel | TorchLanguageModel) -> Rows:
    """Two pictures with texts around them, a question behind them."""
    texts = [decoder.embed(model.tokenizer.encode(text).ids) for text in ("see: ", " and ", " what is this?")]
    return np.concatenate([texts[0], picture(model, 0), texts[1], picture(model, 1), texts[2]])


def test_logits_are_those_of_torch_at_every_row(model: VAEmotionLLM, decoder: LanguageModel) -> None:
    reference = TorchLanguageModel(model)
    rows = prompt(model, decoder)
    np.testing.assert_array_equal(rows, prompt(model, reference))
    expected, got = reference.logits(rows), decoder.logits(rows, all_positions=True)
    difference = np.abs(expected - got).max()
    print(f"\nplaced pictures: max {difference:.2e} of {np.abs(expected).max():.1f}")
    assert difference < 1e-3
    counted = rows.copy()
    counted[:, model.width :] = text_places(len(rows))
    assert np.abs(decoder.logits(counted, all_positions=True) - expected).max() > 0.05


def test_answers_go_on_behind_the_pictures(model: VAEmotionLLM, decoder: LanguageModel) -> None:
    reference = TorchLanguageModel(model)
    rows = prompt(model, decoder)
    prefix, rest = rows[:3], rows[3:]
    for each in (reference, decoder):
        each.set_prefix(prefix)
    options = [model.option_ids(option) for option in ("rain", "a sea", "an old dog barks")]
    np.testing.assert_allclose(decoder.score(rest, options), reference.score(rest, options), atol=1e-3)
    expected = reference.generate(rest, max_tokens=10, stop_ids=[])
    assert decoder.generate(rest, max_tokens=10, stop_ids=[]).token_ids == expected.token_ids
    again = decoder.generate(rest, max_tokens=10, stop_ids=[])  # the tail was dropped
    assert again.token_ids == expected.token_ids


def test_a_prefix_that_differs_within_a_picture_is_evaluated_from_its_start(
    model: VAEmotionLLM, decoder: LanguageModel
) -> None:
    rows = prompt(model, decoder)
    other = rows.copy()
    other[40, 0] += 1.0  # in the first picture
    question = decoder.embed(model.tokenizer.encode("what?").ids)
    expected = {}
    for name, prefix in (("other", other), ("rows", rows)):
        decoder.set_prefix(rows[:0])
        decoder.set_prefix(prefix)
        expected[name] = decoder.logits(question)
    decoder.set_prefix(other)  # keeps what both share
    np.testing.assert_allclose(decoder.logits(question), expected["other"], atol=1e-4)
    assert np.abs(expected["other"] - expected["rows"]).max() > 1e-3


def test_importance_is_collected_with_and_without_places(
    model: VAEmotionLLM, file: Path, decoder: LanguageModel
) -> None:
    rows = prompt(model, decoder)
    found = [collect_importance(file, [each]) for each in (rows, rows[:, : model.width])]
    assert found[0].keys() == found[1].keys()
    name = next(name for name in found[0] if "attn_output" in name)
    assert not np.allclose(found[0][name].mean_squares, found[1][name].mean_squares, rtol=1e-3)


def test_rows_without_places_are_refused(model: VAEmotionLLM, decoder: LanguageModel) -> None:
    with pytest.raises(LanguageModelError, match=r"\(n, 67\), the width and a place, got \(5, 64\)"):
        decoder.logits(torch.zeros(5, model.width).numpy())
