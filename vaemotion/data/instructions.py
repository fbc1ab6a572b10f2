"""Questions about procedural works, with the answers that follow from their factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vaemotion.contract import prompts
from vaemotion.contract.emotions import EMOTIONS, emotion_distribution
from vaemotion.contract.front_end import Clip
from vaemotion.contract.prompts import StandardQuestion
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.art.art import CONTENT_CLASSES, Work, draw_frame, synthesize
from vaemotion.data.art.line_shapes import LineShape

LINE_CONTENT = "abstract shape"


def true_answer(work: Work | LineShape, question: StandardQuestion) -> str:
    """Return the correct answer in words. Raises ValueError for the palette of a line shape."""
    if isinstance(work, LineShape):
        return _answer_of_line(work, question)
    if question == prompts.CONTENT:
        return work.content
    if question == prompts.PALETTE:
        return prompts.palette(work.factors.warmth, work.factors.brightness)
    if question == prompts.AROUSAL:
        return prompts.level_word(work.arousal, prompts.AROUSAL_WORDS)
    if question == prompts.VALENCE:
        return prompts.level_word(work.valence, prompts.VALENCE_WORDS)
    if question == prompts.EMOTION:
        return EMOTIONS[int(np.argmax(work.emotion_distribution))]
    return prompts.caption(work.content, work.valence, work.arousal)


def _answer_of_line(shape: LineShape, question: StandardQuestion) -> str:
    if question == prompts.PALETTE:
        raise ValueError("a line shape has no palette")
    if question == prompts.EMOTION:
        return EMOTIONS[int(np.argmax(emotion_distribution(shape.valence, shape.arousal)))]
    answers = {
        prompts.CONTENT: LINE_CONTENT,
        prompts.AROUSAL: prompts.level_word(shape.arousal, prompts.AROUSAL_WORDS),
        prompts.VALENCE: prompts.level_word(shape.valence, prompts.VALENCE_WORDS),
        prompts.CAPTION: prompts.caption(LINE_CONTENT, shape.valence, shape.arousal),
    }
    return answers[question]


def choose_question(rng: np.random.Generator, shares: Mapping[StandardQuestion, float]) -> StandardQuestion:
    """Sample a question with probability proportional to its share."""
    questions, weights = list(shares), np.array(list(shares.values()))
    return questions[int(rng.choice(len(questions), p=weights / weights.sum()))]


def worded(rng: np.random.Generator, question: StandardQuestion) -> str:
    """Sample a wording of the question; half the time it is the standard one."""
    if not question.paraphrases or rng.random() < 0.5:
        return question.text
    return question.paraphrases[int(rng.integers(len(question.paraphrases)))]


def answers_of(question: StandardQuestion) -> tuple[str, ...]:
    """Return all answers to a question with a closed set of answers; empty for other questions."""
    closed = {
        prompts.CONTENT: CONTENT_CLASSES,
        prompts.AROUSAL: prompts.AROUSAL_WORDS,
        prompts.VALENCE: prompts.VALENCE_WORDS,
        prompts.EMOTION: EMOTIONS,
    }
    return closed.get(question, ())


def with_listed_options(rng: np.random.Generator, question: StandardQuestion, text: str, answer: str) -> str:
    """Append options to ``text``: a random subset of the question's answers with ``answer``, shuffled."""
    others = [option for option in answers_of(question) if option != answer]
    if not others:
        return text
    count = int(rng.integers(1, len(others) + 1))
    options = [answer, *(others[int(i)] for i in rng.permutation(len(others))[:count])]
    return prompts.listed_question(text, [options[int(i)] for i in rng.permutation(len(options))])


def tokenizer_corpus() -> list[str]:
    """Return every question and every answer that the procedural art can produce."""
    template = prompts.PromptTemplate()
    lines = [template.prefix]
    for question in prompts.STANDARD_QUESTIONS:
        lines += [template.question_text(text) for text in (question.text, *question.paraphrases)]
        lines += [prompts.listed_question(question.text, answers_of(question))]
    answers = [*CONTENT_CLASSES, *EMOTIONS, *prompts.VALENCE_WORDS, *prompts.AROUSAL_WORDS]
    answers += [prompts.palette(w, b) for w in (-1, 1) for b in (-1, 1)]
    levels = np.linspace(-0.9, 0.9, 5)
    answers += [prompts.caption(c, v, a) for c in CONTENT_CLASSES for v in levels for a in levels]
    return lines + [template.answer_text(a) for a in answers]


def procedural_clip(work: Work, duration_s: float, frame_hop_s: float) -> Clip:
    """Render a work as a clip: a frame at each grid point of [0, duration_s], and its sound."""
    times = np.arange(0.0, duration_s + EPSILON_S, frame_hop_s)
    frames = tuple(draw_frame(work, float(t)) for t in times)
    return Clip(frames, tuple(float(t) for t in times), synthesize(work, duration_s))
