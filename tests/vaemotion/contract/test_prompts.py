"""The chat template, the standard questions and their answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract import prompts
from vaemotion.contract.prompts import (
    AROUSAL_WORDS,
    VALENCE_WORDS,
    PromptTemplate,
    caption,
    level_word,
    palette,
)


def test_prefix_question_and_answer_make_smolvlms_chat_template() -> None:
    template = PromptTemplate()
    text = (
        template.prefix
        + template.question_text("What is this?")
        + template.answer_text("a bell")
        + template.stop
    )
    assert text == "<|im_start|>User: What is this?<end_of_utterance>\nAssistant: a bell<end_of_utterance>"


@pytest.mark.parametrize("text", ["50 % {of} it?", "{question}", "{", "}", "{0}", "ünï 音"])
def test_braces_in_a_question_or_an_answer_are_only_text(text: str) -> None:
    assert text in PromptTemplate().question_text(text)
    assert PromptTemplate().answer_text(text) == f" {text}"


@pytest.mark.parametrize("words", [VALENCE_WORDS, AROUSAL_WORDS])
def test_the_five_levels_are_equal_parts_of_the_interval(words: tuple[str, ...]) -> None:
    assert [level_word(v, words) for v in (-1, -0.61, -0.59, -0.21, -0.19, 0.19, 0.21, 0.59, 0.61, 1)] == [
        word for word in words for _ in range(2)
    ]


@given(low=st.floats(-2, 2), high=st.floats(-2, 2))
def test_a_higher_value_never_gets_a_lower_word_even_outside_the_interval(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert VALENCE_WORDS.index(level_word(low, VALENCE_WORDS)) <= VALENCE_WORDS.index(
        level_word(high, VALENCE_WORDS)
    )


def test_a_caption_names_content_arousal_and_valence() -> None:
    assert caption("rooster", 0.4, 0.4) == "a rooster, stirring and pleasant"
    assert caption("organ", -0.9, -0.9) == "an organ, very calm and very unpleasant"


def test_a_palette_names_light_and_warmth() -> None:
    assert palette(0.5, 0.5) == "bright warm colors"
    assert palette(-0.5, -0.5) == "dark cool colors"


def test_colors_are_not_asked_of_sound() -> None:
    assert not prompts.PALETTE.audible
    assert all(question.audible for question in prompts.STANDARD_QUESTIONS if question is not prompts.PALETTE)
    assert prompts.CONTENT.task == prompts.PALETTE.task == "content"
    assert {q.task for q in prompts.STANDARD_QUESTIONS} == {"content", "emotion"}


@pytest.mark.parametrize("other", ["SEA  waves", " sea\u00a0waves ", "\uff53ea waves", "sea waves"])
def test_spellings_of_one_answer_are_folded_together(other: str) -> None:
    assert prompts.folded(other) == prompts.folded("sea waves")
    assert prompts.folded("sea wave") != prompts.folded("sea waves")
