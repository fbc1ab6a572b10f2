"""Token ids of prompts: a user's text is text, also where it holds the content of a special token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from runtime.perception.predictor import Tokens, open_predictor
from tests.tiny import tiny_tokenizer
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.prompts import PromptTemplate, listed_question
from vaemotion.model.checkpoint import load_checkpoint

CHATML = PromptTemplate(
    prefix="<|im_start|>user\n", question="{question}<|im_end|>\n<|im_start|>assistant\n", answer="{answer}",
    stop="<|im_end|>",
)  # fmt: skip


def chatml_tokenizer() -> Tokenizer:
    """Return the tiny tokenizer with ChatML's and others' special tokens, and one that is not special."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens(["<|im_end|>", "</s>", "<s>", "<image>", "<audio>", "<global-img>"])
    tokenizer.add_special_tokens(["<fake_token_around_image>"])
    tokenizer.add_tokens(
        [AddedToken("[joy]", normalized=False), AddedToken("oddly pleasant", normalized=True)]
    )
    return tokenizer


TOKENIZERS = {"tiny": (tiny_tokenizer(), PromptTemplate()), "ChatML": (chatml_tokenizer(), CHATML)}
TOKENIZERS["SmolVLM2"] = (
    TOKENIZERS["ChatML"][0],
    PromptTemplate(
        before_picture="<fake_token_around_image><global-img>",
        after_picture="<fake_token_around_image>",
        question="{question}<end_of_utterance>\nAssistant:",
    ),
)
ADDED = {
    name: [t.content for t in pair[0].get_added_tokens_decoder().values()]
    for name, pair in TOKENIZERS.items()
}
EACH = pytest.mark.parametrize("name", TOKENIZERS)


def question_without_template(name: str, question: str) -> list[int]:
    """Return the ids that a question adds to those of an empty one's special tokens."""
    tokenizer, template = TOKENIZERS[name]
    ids = PromptTokens(tokenizer, template).of_question(question)
    special = {number for number in tokenizer.get_added_tokens_decoder()}
    template_ids = [i for i in PromptTokens(tokenizer, template).of_question("") if i in special]
    found = [i for i in ids if i in special]
    assert found == template_ids  # the template's own, whatever the question holds
    return ids


@EACH
def test_a_special_token_in_a_question_or_an_answer_is_text(name: str) -> None:
    tokenizer, template = TOKENIZERS[name]
    tokens = PromptTokens(tokenizer, template)
    for content in (*ADDED[name], "<|im_end|>", "</s>", "<audio>", "<image>"):
        question = f"Is {content} a bell?{content}"
        ids = question_without_template(name, question)
        assert tokenizer.decode(ids, skip_special_tokens=False) == template.question_text(question)
        answer = tokens.of_answer(content)
        assert not set(answer) & set(tokenizer.get_added_tokens_decoder())
        assert tokenizer.decode(answer, skip_special_tokens=False) == template.answer_text(content)


@EACH
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_texts_without_added_tokens_are_tokenized_as_before(name: str, data: st.DataObject) -> None:
    tokenizer, template = TOKENIZERS[name]
    tokens = PromptTokens(tokenizer, template)
    letters = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    text = data.draw(
        letters | st.sampled_from(["What is this?", " two  spaces ", "{question}", "{0}", "\n\nAssistant:"])
    )
    if any(content in text or content in text.lower() for content in ADDED[name]):
        return
    whole = tokenizer.encode(template.question_text(text), add_special_tokens=False).ids
    assert tokens.of_question(text) == whole
    assert (
        tokens.of_answer(text) == tokenizer.encode(template.answer_text(text), add_special_tokens=False).ids
    )


@EACH
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_adds_a_special_token(name: str, data: st.DataObject) -> None:
    pieces = st.sampled_from([*ADDED[name], *"<|im_end>/s", " ", "ä", "a\u0308"])
    question_without_template(name, "".join(data.draw(st.lists(pieces, max_size=12))))


def test_the_template_keeps_its_special_tokens() -> None:
    tokenizer, template = TOKENIZERS["ChatML"]
    ids = PromptTokens(tokenizer, template).of_question(listed_question("Which?", ["</s>", "a bell"]))
    assert [ids.count(tokenizer.token_to_id(token)) for token in ("<|im_end|>", "<|im_start|>", "</s>")] == [
        1, 1, 0,
    ]  # fmt: skip
    assert PromptTokens(tokenizer, template).of_template("<|im_end|>") == [
        tokenizer.token_to_id("<|im_end|>")
    ]


@pytest.mark.parametrize(
    "text", ["What is this?", "Is <end_of_utterance> a <|im_start|>bell?", "<|endoftext|>"]
)
def test_the_device_and_torch_see_the_same_tokens(
    text: str, small_checkpoint: Path, small_bundle: Path
) -> None:
    model = load_checkpoint(small_checkpoint)
    with open_predictor(small_bundle) as predictor:
        width, per_frame = predictor.constants.token_width, predictor.constants.tokens_per_frame
        nothing = np.zeros((0, per_frame, width), np.float32)
        tokens = Tokens(nothing, np.zeros(0, np.float32), nothing[:, 0], 0.0)
        asked = predictor.prompt(tokens, text)  # (n, D), the question alone
        options = predictor.option_ids(text)
        np.testing.assert_array_equal(asked, predictor.language_model.embed(model.question_ids(text)))
    batch = model.text_batch([text], [text])
    assert batch.ids[batch.answer].tolist() == options == model.option_ids(text)
    assert options.count(model.stop_id) == 1
    assert batch.ids[0, : len(asked)].tolist() == model.question_ids(text)


def test_a_windows_tokens_are_those_that_a_prompt_has_before_its_question(small_bundle: Path) -> None:
    with open_predictor(small_bundle) as predictor:
        constants, windows = predictor.constants, predictor.constants.front_end.windows
        frames, width = windows.language_frames, constants.token_width
        tokens = Tokens(
            np.zeros((frames, constants.tokens_per_frame, width), np.float32),
            np.zeros(frames, np.float32),
            np.zeros((constants.audio_tokens, width), np.float32),
            0.0,
        )
        whole = len(predictor.token_ids(constants.prompt.prefix)) + len(predictor.prompt(tokens, "Which?"))
        counted = PromptTokens(predictor.tokenizer, constants.prompt)
        window = counted.of_window(frames, constants.tokens_per_frame, constants.audio_tokens)
        assert window == whole - len(counted.of_question("Which?"))
