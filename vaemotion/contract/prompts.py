"""Chat template, standard questions and their answers.

A prompt is ``prefix; visual tokens; audio tokens between their delimiters; question; answer``. The prefix is
constant, so the device keeps it in the KV cache. The media stand in place of the image tokens with which the
base was trained. The default is the template of the bases that this project trains itself; that of a
pretrained base comes from its own chat template (``vaemotion.model.chat_template``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptTemplate:
    """The text around the media.

    ``before_picture`` and ``after_picture`` enclose the tokens of each frame. ``question`` and ``answer`` are
    patterns for ``str.format``. ``stop``: the special token that ends an answer; ``stops``: further tokens at
    which the base also ends one. Each of them is one token.
    """

    prefix: str = "<|im_start|>User:"
    before_picture: str = ""
    after_picture: str = ""
    question: str = " {question}<end_of_utterance>\nAssistant:"
    answer: str = " {answer}"
    stop: str = "<end_of_utterance>"
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stops", tuple(self.stops))  # JSON has lists

    @property
    def ends(self) -> tuple[str, ...]:
        """All tokens that end an answer, ``stop`` first."""
        return (self.stop, *self.stops)

    def question_text(self, question: str) -> str:
        """Return the text from the media to the answer."""
        return self.question.format(question=question)

    def answer_text(self, answer: str) -> str:
        """Return the answer as it follows the question's text."""
        return self.answer.format(answer=answer)


@dataclass(frozen=True)
class StandardQuestion:
    """A question of training and evaluation.

    ``task``: "content" or "emotion". ``audible``: True where sound can hold the answer; only then the answer
    from frames is distilled into the audio encoder. ``paraphrases``: other wordings of the same question.
    """

    text: str
    task: str
    audible: bool
    paraphrases: tuple[str, ...] = ()


CONTENT = StandardQuestion(
    "What is this?",
    "content",
    audible=True,
    paraphrases=(
        "What do you see?",
        "What do you hear?",
        "What is shown?",
        "What can be heard?",
        "What is making this sound?",
        "Which sound is this?",
        "What does the picture show?",
    ),
)
PALETTE = StandardQuestion("Which colors does it have?", "content", audible=False)
AROUSAL = StandardQuestion(
    "How calm or stirring is it?",
    "emotion",
    audible=True,
    paraphrases=("How arousing is it?", "How calm or excited does it feel?"),
)
VALENCE = StandardQuestion(
    "How pleasant or unpleasant is it?",
    "emotion",
    audible=True,
    paraphrases=("How positive or negative is it?", "How pleasant does it feel?"),
)
EMOTION = StandardQuestion(
    "Which emotion does it express?",
    "emotion",
    audible=True,
    paraphrases=(
        "What emotion does it evoke?",
        "Which feeling does it convey?",
        "What does it make you feel?",
    ),
)
CAPTION = StandardQuestion("Describe it.", "emotion", audible=True)
STANDARD_QUESTIONS = (CONTENT, PALETTE, AROUSAL, VALENCE, EMOTION, CAPTION)

VALENCE_WORDS = ("very unpleasant", "unpleasant", "neutral", "pleasant", "very pleasant")
AROUSAL_WORDS = ("very calm", "calm", "moderate", "stirring", "very stirring")


def folded(answer: str) -> str:
    """Return a form that is equal for answers which are the same to a person.

    Letter case, white space and compatible characters (Unicode NFKC) do not count.
    """
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split())


def listed_question(question: str, options: Sequence[str]) -> str:
    """Return a question that lists its options, for answers in words."""
    return f"{question} Choose: {', '.join(options)}."


def level_word(value: float, words: tuple[str, ...]) -> str:
    """Return the word for ``value`` in [-1, 1]. The words share the interval equally, from low to high."""
    index = int((value + 1) / 2 * len(words))
    return words[min(max(index, 0), len(words) - 1)]


_UNCOUNTED = ("fire crackling", "rain", "sea waves", "strings")  # take no article


def caption(content: str, valence: float, arousal: float) -> str:
    """Return a phrase on content and affect, for example "a rooster, stirring and pleasant"."""
    article = "" if content in _UNCOUNTED else "an " if content[0] in "aeiou" else "a "
    arousal_word, valence_word = level_word(arousal, AROUSAL_WORDS), level_word(valence, VALENCE_WORDS)
    return f"{article}{content}, {arousal_word} and {valence_word}"


def palette(warmth: float, brightness: float) -> str:
    """Return the answer to ``PALETTE`` for a work's warmth and brightness, each in [-1, 1]."""
    hue = "warm" if warmth > 0 else "cool"
    return f"{'bright' if brightness > 0 else 'dark'} {hue} colors"
