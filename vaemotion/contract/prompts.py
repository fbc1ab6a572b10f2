"""Chat template, questions and answers: the words that training, evaluation and the device share.

A prompt is ``prefix; visual tokens; audio tokens between their delimiters; question; answer``. The prefix never changes, so
the device keeps it in the KV cache. The template is SmolVLM's, with the media in place of the image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptTemplate:
    """Text around the media. ``stop``: the special token that ends an answer."""

    prefix: str = "<|im_start|>User:"
    question: str = " {question}<end_of_utterance>\nAssistant:"
    answer: str = " {answer}"
    stop: str = "<end_of_utterance>"

    def question_text(self, question: str) -> str:
        return self.question.format(question=question)

    def answer_text(self, answer: str) -> str:
        return self.answer.format(answer=answer)


@dataclass(frozen=True)
class StandardQuestion:
    """``task``: content or emotion. ``audible``: is the answer in the sound at all? Only then sight may teach it to the ear."""

    text: str
    task: str
    audible: bool


CONTENT = StandardQuestion("What is this?", "content", audible=True)
PALETTE = StandardQuestion("Which colors does it have?", "content", audible=False)
AROUSAL = StandardQuestion("How calm or stirring is it?", "emotion", audible=True)
VALENCE = StandardQuestion("How pleasant or unpleasant is it?", "emotion", audible=True)
EMOTION = StandardQuestion("Which emotion does it express?", "emotion", audible=True)
CAPTION = StandardQuestion("Describe it.", "emotion", audible=True)
STANDARD_QUESTIONS = (CONTENT, PALETTE, AROUSAL, VALENCE, EMOTION, CAPTION)

VALENCE_WORDS = ("very unpleasant", "unpleasant", "neutral", "pleasant", "very pleasant")
AROUSAL_WORDS = ("very calm", "calm", "moderate", "stirring", "very stirring")


def level_word(value: float, words: tuple[str, ...]) -> str:
    """The word for ``value`` in [-1, 1]: equal parts of the interval, from low to high."""
    index = int((value + 1) / 2 * len(words))
    return words[min(max(index, 0), len(words) - 1)]


def caption(content: str, valence: float, arousal: float) -> str:
    """One sentence on content and affect, for example "a rooster, stirring and pleasant"."""
    article = "an" if content[0] in "aeiou" else "a"
    return (
        f"{article} {content}, {level_word(arousal, AROUSAL_WORDS)} and {level_word(valence, VALENCE_WORDS)}"
    )


def palette(warmth: float, brightness: float) -> str:
    """The answer to ``PALETTE`` for factors in [-1, 1]."""
    hue = "warm" if warmth > 0 else "cool"
    return f"{'bright' if brightness > 0 else 'dark'} {hue} colors"
