"""Chat template, questions and answers: the words that training, evaluation and the device share.

A prompt is ``prefix; visual tokens; audio tokens between their delimiters; question; answer``. The prefix never changes, so
the device keeps it in the KV cache. The template is SmolVLM's, with the media in place of the image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptTemplate:
    """Text around the media; ``before_picture`` and ``after_picture`` around the tokens of every single picture, as SmolVLM2 was
    trained with them. ``stop``: the special token that ends an answer."""

    prefix: str = "<|im_start|>User:"
    before_picture: str = ""
    after_picture: str = ""
    question: str = " {question}<end_of_utterance>\nAssistant:"
    answer: str = " {answer}"
    stop: str = "<end_of_utterance>"

    def question_text(self, question: str) -> str:
        return self.question.format(question=question)

    def answer_text(self, answer: str) -> str:
        return self.answer.format(answer=answer)


SMOLVLM2 = PromptTemplate(
    before_picture="<fake_token_around_image><global-img>", after_picture="<fake_token_around_image>"
)


@dataclass(frozen=True)
class StandardQuestion:
    """``task``: content or emotion. ``audible``: is the answer in the sound at all? Only then sight may teach it to the ear.
    ``paraphrases``: other wordings of the same question."""

    text: str
    task: str
    audible: bool
    paraphrases: tuple[str, ...] = ()


CONTENT = StandardQuestion(
    "What is this?", "content", audible=True,
    paraphrases=(
        "What do you see?", "What do you hear?", "What is shown?", "What can be heard?", "What is making this sound?",
        "Which sound is this?", "What does the picture show?",
    ),
)  # fmt: skip
PALETTE = StandardQuestion("Which colors does it have?", "content", audible=False)
AROUSAL = StandardQuestion(
    "How calm or stirring is it?", "emotion", audible=True,
    paraphrases=("How arousing is it?", "How calm or excited does it feel?"),
)  # fmt: skip
VALENCE = StandardQuestion(
    "How pleasant or unpleasant is it?", "emotion", audible=True,
    paraphrases=("How positive or negative is it?", "How pleasant does it feel?"),
)  # fmt: skip
EMOTION = StandardQuestion(
    "Which emotion does it express?", "emotion", audible=True,
    paraphrases=("What emotion does it evoke?", "Which feeling does it convey?", "What does it make you feel?"),
)  # fmt: skip
CAPTION = StandardQuestion("Describe it.", "emotion", audible=True)
STANDARD_QUESTIONS = (CONTENT, PALETTE, AROUSAL, VALENCE, EMOTION, CAPTION)

VALENCE_WORDS = ("very unpleasant", "unpleasant", "neutral", "pleasant", "very pleasant")
AROUSAL_WORDS = ("very calm", "calm", "moderate", "stirring", "very stirring")


def listed_question(question: str, options: Sequence[str]) -> str:
    """The question with its options in the prompt: the second scoring, answered by greedy generation."""
    return f"{question} Choose: {', '.join(options)}."


def level_word(value: float, words: tuple[str, ...]) -> str:
    """The word for ``value`` in [-1, 1]: equal parts of the interval, from low to high."""
    index = int((value + 1) / 2 * len(words))
    return words[min(max(index, 0), len(words) - 1)]


_UNCOUNTED = ("fire crackling", "rain", "sea waves", "strings")  # take no article


def caption(content: str, valence: float, arousal: float) -> str:
    """One sentence on content and affect, for example "a rooster, stirring and pleasant"."""
    article = "" if content in _UNCOUNTED else "an " if content[0] in "aeiou" else "a "
    return (
        f"{article}{content}, {level_word(arousal, AROUSAL_WORDS)} and {level_word(valence, VALENCE_WORDS)}"
    )


def palette(warmth: float, brightness: float) -> str:
    """The answer to ``PALETTE`` for factors in [-1, 1]."""
    hue = "warm" if warmth > 0 else "cool"
    return f"{'bright' if brightness > 0 else 'dark'} {hue} colors"
