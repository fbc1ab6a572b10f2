"""Narrations of a real language model: none that is published is cut, looped, empty or in several lines.

A sample of what ``scripts/narrations`` prints.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the real language model is made with torch")

from runtime.messages import Narration
from runtime.narration.narrator import Withheld
from tests.real_narrations import fault, narrations, real_narrator


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The sea is calm.", ""),
        ('He says "It is calm."', ""),
        ("The sea is calm. The", "cut"),
        ("", "empty"),
        ("...", "empty"),
        ("It is\ncalm.", "several lines"),
        ("**It** is calm.", "several lines"),
        ("A glass of wine, a glass of wine.", "looped"),
        ("It is a sea, then it is a sea, and it is a sea.", "looped"),
    ],
)
def test_the_judge_finds_what_is_unfit(text: str, found: str) -> None:
    assert fault(text) == found


@pytest.mark.parametrize(("template", "count"), [("its own", 3), ("SmolVLM's", 2)])
def test_what_a_real_model_says_is_fit_for_a_wall(template: str, count: int) -> None:
    with real_narrator(template) as predictor:
        told = list(narrations(predictor, count, seed=1))
    assert len(told) == count
    published = [each.said.text for each in told if isinstance(each.said, Narration)]
    assert {text: fault(text) for text in published} == dict.fromkeys(published, "")
    assert len(published) >= count - 1, [each for each in told if isinstance(each.said, Withheld)]
