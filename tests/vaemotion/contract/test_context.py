"""The context of the language model: as much as prompts need, no more than it was trained for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.language_model import open_language_model
from tests.tiny import CONFIG_FILE, SMALL, tiny_model
from vaemotion.contract.bundle import read_manifest
from vaemotion.contract.context import LEAST_QUESTION_TOKENS, QUESTION_TOKENS, context_tokens
from vaemotion.contract.errors import UsageError
from vaemotion.model.checkpoint import save_checkpoint
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training import vg_align


@given(window=st.integers(1, 4000), trained=st.integers(64, 8192))
def test_a_context_holds_the_window_and_a_question_and_never_more_than_was_trained(
    window: int, trained: int
) -> None:
    if window + LEAST_QUESTION_TOKENS > trained:
        with pytest.raises(UsageError, match=r"trained for \d+ tokens.*--set windows\.language_frames=N"):
            context_tokens(window, trained)
        return
    context = context_tokens(window, trained)
    assert window + LEAST_QUESTION_TOKENS <= context <= trained
    assert context >= min(trained, window + QUESTION_TOKENS)


def test_eight_pictures_of_smolvlm2_fit_where_512_tokens_would_not_hold_them() -> None:
    eight = 2 + 8 * (64 + 3) + 30 + 2  # prefix, pictures with their tokens, sound with its delimiters
    assert eight > 512
    assert context_tokens(eight, 8192) >= eight + QUESTION_TOKENS
    with pytest.raises(UsageError, match="trained for 512 tokens"):
        context_tokens(eight, 512)


def of_length(model: VAEmotionLLM, trained_tokens: int) -> VAEmotionLLM:
    """Return the model with a base that was trained for another length."""
    vlm = {**model.config.vlm, "text_config": {**model.config.vlm["text_config"]}}
    vlm["text_config"]["max_position_embeddings"] = trained_tokens
    return VAEmotionLLM(replace(model.config, vlm=vlm), model.tokenizer)


def test_a_base_that_is_too_short_is_refused_before_any_window_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(audio=False, adapter=False)
    assert of_length(model, 600).context_tokens() <= 600
    save_checkpoint(of_length(model, 70), tmp_path / "base", {"name": "short"}, "Apache-2.0")
    monkeypatch.setattr(vg_align, "prepare", lambda *_: pytest.fail("windows were drawn"))
    with pytest.raises(UsageError, match="trained for 70 tokens, but prefix, frames and sound take"):
        vg_align.train(CONFIG_FILE, [*SMALL, f"runs={tmp_path}"], None, resume=False)


def test_a_bundle_opens_with_its_own_context_and_an_older_one_with_512(
    small_bundle: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(small_bundle)
    component = manifest.component("language_model")
    with open_language_model(small_bundle, replace(manifest, context_tokens=300), component) as model:
        assert model.context_tokens == 300
    values = json.loads((small_bundle / "manifest.json").read_text())
    assert values.pop("context_tokens") == manifest.context_tokens
    for entry in values["components"]:
        del entry["weights_bytes"], entry["activation_bytes"]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    older = read_manifest(tmp_path)
    assert older.context_tokens == 512
    assert {c.activation_bytes for c in older.components} == {0}
