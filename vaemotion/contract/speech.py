"""Speech: what the narrator asks the language model, and how much of the answer it speaks.

A bundle's manifest holds one ``Speech``, and ``[narrator]`` of the live configuration another. A field that
is empty or 0 is not set: the configuration's fields come before the bundle's, and those before ``STANDARD``.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, fields

from vaemotion.contract import prompts
from vaemotion.contract.settings import Condition, demand, within

LONGEST_QUESTION, LONGEST_LANGUAGE = 500, 40  # characters


@dataclass(frozen=True)
class Speech:
    """Settings of narrations. Empty and 0: not set."""

    # Question that every narration answers.
    question: str = ""
    # Language that the language model is asked to answer in, such as "German".
    language: str = ""
    # Sentences of a narration, at most.
    sentences: int = 0
    # Tokens after which a narration ends with the sentence that it is in.
    enough_tokens: int = 0
    # Tokens after which it ends in any case; a sentence that is cut here is not spoken.
    max_tokens: int = 0
    # Newest tokens of a narration within which no phrase is repeated.
    repetition_tokens: int = 0

    def __post_init__(self) -> None:
        demand(self, *self.conditions())

    def conditions(self) -> list[Condition]:
        """Return the conditions on the fields."""
        question = f"a text of at most {LONGEST_QUESTION} characters in one line"
        language = f"a name of at most {LONGEST_LANGUAGE} characters"
        tokens = (0, 500)
        return [
            ("question", _is_line(self.question, LONGEST_QUESTION), question),
            ("language", _is_line(self.language, LONGEST_LANGUAGE), language),
            *within(self, sentences=(0, 10)),
            *within(self, enough_tokens=tokens, max_tokens=tokens, repetition_tokens=tokens),
        ]

    def over(self, base: Speech) -> Speech:
        """Return ``base`` with the fields that are set here in place of its own."""
        return Speech(**{f.name: getattr(self, f.name) or getattr(base, f.name) for f in fields(Speech)})

    @property
    def question_text(self) -> str:
        """The question as the language model is asked it, with the language of the answer."""
        return f"{self.question} Answer in {self.language}." if self.language else self.question


def _is_line(text: str, longest: int) -> bool:
    return len(text) <= longest and not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in text)


UNSET = Speech()
STANDARD = Speech(
    prompts.CAPTION.text, "", sentences=2, enough_tokens=12, max_tokens=80, repetition_tokens=80
)
