"""Rows that the language model evaluates, counted by llama.cpp: no cached row, and no token twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.llama_fixture import make_tiny_llama

pytest.importorskip("llama_cpp", reason="needs the extra `llm`")

from runtime.engines.language_model import LanguageModel
from runtime.engines.llama import backend

PREFIX_ROWS, WINDOW_ROWS = 160, 48  # a new window, as benchmarks/language_model.py times it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    path, tiny = tmp_path_factory.mktemp("gguf") / "tiny.gguf", make_tiny_llama()
    tiny.write(path)
    with LanguageModel(path, tiny.token_embeddings, f32_kv=True, threads=1, batch_tokens=256) as model:
        model.generate(rows(4), max_tokens=2, stop_ids=[])  # llama.cpp's counters say 1 where they are 0
        yield model


@pytest.fixture(autouse=True)
def no_prefix(model: LanguageModel) -> None:
    model.set_prefix(rows(0))


def rows(n: int, seed: int = 0) -> np.ndarray:
    """Draw (n, 256) float32 that belong to no token."""
    return np.random.default_rng(seed).normal(0, 0.05, (n, 256)).astype(np.float32)


def counters(model: LanguageModel) -> np.ndarray:
    """Read llama.cpp's counters: rows evaluated in batches of several, and rows evaluated alone."""
    llama: Any = backend().llama
    context = model._session._context
    llama.llama_synchronize(context)
    counted = llama.llama_perf_context(context)
    return np.array([counted.n_p_eval, counted.n_eval])


@contextmanager
def evaluates(model: LanguageModel, *, together: int, alone: int = 0) -> Iterator[None]:
    """Assert that the block evaluates so many rows, and that `evaluated_tokens` counts the same."""
    before, counted = counters(model), model.evaluated_tokens
    yield
    found = counters(model) - before
    assert found.tolist() == [together, alone]
    assert model.evaluated_tokens - counted == together + alone


def test_a_new_window_evaluates_its_own_rows_only(model: LanguageModel) -> None:
    prefix = rows(PREFIX_ROWS)
    with evaluates(model, together=PREFIX_ROWS):
        model.set_prefix(prefix)
    for seed in (1, 2, 1):  # also a repeated one: between calls the cache holds the prefix only
        with evaluates(model, together=WINDOW_ROWS):
            model.set_prefix(prefix.copy())
            model.logits(rows(WINDOW_ROWS, seed))
    with evaluates(model, together=PREFIX_ROWS + WINDOW_ROWS):
        model.set_prefix(rows(0))
        model.logits(np.concatenate([prefix, rows(WINDOW_ROWS, 1)]))


def test_a_changed_prefix_is_evaluated_from_the_first_difference(model: LanguageModel) -> None:
    prefix = rows(PREFIX_ROWS)
    model.set_prefix(prefix)
    prefix[150] += 0.01
    with evaluates(model, together=10):
        model.set_prefix(prefix)
    with evaluates(model, together=0):  # a shorter prefix is in the cache already
        model.set_prefix(prefix[:100])


def test_choices_evaluate_the_question_once_and_all_answers_together(model: LanguageModel) -> None:
    question, answers = rows(16), [[20 + i, 40 + i] for i in range(7)]
    model.set_prefix(rows(PREFIX_ROWS, 1))
    with evaluates(model, together=16 + 7):  # the answers' last tokens are predicted only
        branched = model.score(question, answers)
    # For comparison: an answer by itself is a batch of one.
    with evaluates(model, together=7 * 16, alone=7):
        in_turn = [model.score(question, [answer])[0] for answer in answers]
    np.testing.assert_allclose(branched, in_turn, atol=1e-4)


def test_answers_of_one_token_cost_nothing(model: LanguageModel) -> None:
    with evaluates(model, together=16):
        model.score(rows(16), [[20], [30], [40]])


def test_generation_evaluates_the_prompt_and_every_token_but_the_last(model: LanguageModel) -> None:
    prompt = rows(20, 3)
    model.set_prefix(rows(PREFIX_ROWS, 1))
    with evaluates(model, together=20, alone=11):
        tokens = model.generate(prompt, max_tokens=12, stop_ids=[]).token_ids
    assert len(tokens) == 12
    with evaluates(model, together=20, alone=tokens.index(tokens[6])):  # nothing after the stop token
        assert model.generate(prompt, max_tokens=12, stop_ids=[tokens[6]]).complete
    with evaluates(model, together=20):
        model.generate(prompt, max_tokens=1, stop_ids=[])
