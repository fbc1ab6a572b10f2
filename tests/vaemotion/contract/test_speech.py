"""The speech setting: what is set comes before what is not, and what cannot be spoken is refused."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from vaemotion.contract.prompts import CAPTION
from vaemotion.contract.settings import Impossible
from vaemotion.contract.speech import STANDARD, UNSET, Speech


def test_what_the_configuration_sets_comes_before_the_bundle_s_and_that_before_the_standard() -> None:
    bundle = Speech("How does it feel?", sentences=3)
    asked = Speech(language="German", sentences=1).over(bundle).over(STANDARD)
    assert asked == replace(STANDARD, question="How does it feel?", language="German", sentences=1)
    assert UNSET.over(UNSET).over(STANDARD) == STANDARD


def test_every_field_of_the_standard_is_set_but_the_language() -> None:
    assert [name for name, value in asdict(STANDARD).items() if not value] == ["language"]
    assert STANDARD.question == CAPTION.text  # the question of training


def test_the_language_is_asked_for_behind_the_question() -> None:
    assert STANDARD.question_text == "Describe it."
    assert replace(STANDARD, language="German").question_text == "Describe it. Answer in German."


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"question": "What\nis it?"}, "a text of at most 500 characters in one line"),
        ({"question": "x" * 501}, "a text of at most 500 characters in one line"),
        ({"language": "\x1b[31m"}, "a name of at most 40 characters"),
        ({"sentences": -1}, "from 0 to 10"),
        ({"enough_tokens": 501}, "from 0 to 500"),
        ({"max_tokens": -1}, "from 0 to 500"),
        ({"repetition_tokens": 10**6}, "from 0 to 500"),
    ],
)
def test_what_cannot_be_spoken_is_refused_by_its_field(wrong: dict, sentence: str) -> None:
    with pytest.raises(Impossible) as caught:
        Speech(**wrong)
    assert list(caught.value.fields) == list(wrong)
    assert sentence in caught.value.fields[next(iter(wrong))]
