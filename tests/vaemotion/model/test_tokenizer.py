"""The tokenizer of a base from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.tiny import tiny_tokenizer
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.data.instructions import tokenizer_corpus
from vaemotion.model.tokenizer import END_OF_TEXT_ID, SPECIAL_TOKENS, train_tokenizer


def test_special_tokens_have_fixed_ids_and_are_one_token_each() -> None:
    tokenizer = tiny_tokenizer()
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert SPECIAL_TOKENS[END_OF_TEXT_ID] == "<|endoftext|>"
    for index, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode(token, add_special_tokens=False).ids == [index]


def test_the_prompt_holds_its_special_tokens_whole() -> None:
    template, tokenizer = PromptTemplate(), tiny_tokenizer()
    ids = tokenizer.encode(
        template.prefix + template.question_text("What is this?"), add_special_tokens=False
    ).ids
    assert ids.count(tokenizer.token_to_id("<|im_start|>")) == 1
    assert ids.count(tokenizer.token_to_id("<end_of_utterance>")) == 1


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_in_its_nfc_form(text: str) -> None:
    import unicodedata

    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == unicodedata.normalize(
        "NFC", text
    )


def test_digits_stand_alone_even_where_the_corpus_joins_them() -> None:
    tokenizer = train_tokenizer(["1999 1999 1999 1999"] * 50, 300)
    assert [token for token in tokenizer.encode("1999").tokens if token.isdigit()] == ["1", "9", "9", "9"]


def test_the_vocabulary_holds_every_byte_and_is_never_larger_than_asked() -> None:
    tokenizer = train_tokenizer(tokenizer_corpus(), 384)
    assert len(SPECIAL_TOKENS) + 256 < tokenizer.get_vocab_size() <= 384


def test_frequent_sentences_take_fewer_tokens_than_bytes() -> None:
    text = "How pleasant or unpleasant is it?"
    assert len(tiny_tokenizer().encode(text).ids) < len(text) / 2


@pytest.mark.parametrize("again", ["trained", "saved"])
def test_the_same_corpus_gives_the_same_tokenizer_and_so_does_its_file(again: str, tmp_path: Path) -> None:
    first = tiny_tokenizer()
    first.save(str(tmp_path / "tokenizer.json"))
    second = (
        train_tokenizer(tokenizer_corpus(), 384)
        if again == "trained"
        else Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    )
    assert second.to_str() == first.to_str()
