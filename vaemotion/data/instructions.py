"""Questions about procedural works, with the answers that follow from their factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vaemotion.contract import prompts
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import Clip
from vaemotion.contract.prompts import StandardQuestion
from vaemotion.data.procedural_art import CONTENT_CLASSES, Work, draw_frame, synthesise


def true_answer(work: Work, question: StandardQuestion) -> str:
    """The answer in words."""
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


def choose_question(rng: np.random.Generator, shares: Mapping[StandardQuestion, float]) -> StandardQuestion:
    """A question with probability proportional to its share."""
    questions, weights = list(shares), np.array(list(shares.values()))
    return questions[int(rng.choice(len(questions), p=weights / weights.sum()))]


def tokenizer_corpus() -> list[str]:
    """Every question and answer that the procedural world can produce."""
    template = prompts.PromptTemplate()
    lines = [template.prefix]
    lines += [template.question_text(q.text) for q in prompts.STANDARD_QUESTIONS]
    answers = [*CONTENT_CLASSES, *EMOTIONS, *prompts.VALENCE_WORDS, *prompts.AROUSAL_WORDS]
    answers += [prompts.palette(w, b) for w in (-1, 1) for b in (-1, 1)]
    levels = np.linspace(-0.9, 0.9, 5)
    answers += [prompts.caption(c, v, a) for c in CONTENT_CLASSES for v in levels for a in levels]
    return lines + [template.answer_text(a) for a in answers]


def procedural_clip(work: Work, duration_s: float, frame_hop_s: float) -> Clip:
    """The work as a decoded clip: a frame at each grid point of [0, duration], and its sound."""
    times = np.arange(0.0, duration_s + 1e-6, frame_hop_s)
    frames = tuple(draw_frame(work, float(t)) for t in times)
    return Clip(frames, tuple(float(t) for t in times), synthesise(work, duration_s))
