"""Questions about works, with the answers that follow from what is known of them.

In: an item of a manifest, a procedural work or a line drawing. Out: `Known`, and from it answers in words, or
a question with its answer for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vaemotion.contract import prompts
from vaemotion.contract.emotions import EMOTIONS, emotion_distribution
from vaemotion.contract.front_end import Clip, reads_frames
from vaemotion.contract.prompts import StandardQuestion
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.art.art import Work, draw_frame, synthesize
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.art.line_shapes import LineShape
from vaemotion.data.emotion_vocabularies import mapped_distribution
from vaemotion.data.manifest.item import Item

LINE_CONTENT = "abstract shape"
# What people felt is asked for in these words; the standard one asks for what the work expresses.
EMOTION_INDUCED = replace(
    prompts.EMOTION, text=prompts.EMOTION.paraphrases[0], paraphrases=prompts.EMOTION.paraphrases[2:]
)
FEELING = StandardQuestion(prompts.EMOTION.paraphrases[2], "emotion", audible=True)  # in a rater's own words
LONGEST_WORDS = 60  # of an utterance; longer ones are no answers
FEELING_SHARE = OWN_SHARE = 0.25  # of these two beside a set of standard questions whose shares sum to 1


@dataclass(frozen=True)
class Known:
    """Knowledge of a work; None or nothing where it is not.

    ``label``: what it shows or sounds like. ``valence``, ``arousal``: in [-1, 1]. ``emotion``: the strongest.
    ``induced``: the affect is what people felt, not what the work expresses. ``utterances``: raters' own
    words. ``question``, ``answer``: the item's own; ``audible``: False where sound cannot hold that answer.
    """

    label: str | None = None
    valence: float | None = None
    arousal: float | None = None
    emotion: str | None = None
    palette: str | None = None
    induced: bool = False
    utterances: tuple[str, ...] = ()
    question: str | None = None
    answer: str | None = None
    audible: bool = True


def known_of(work: Item | Work | LineShape, emotions: Sequence[str] = EMOTIONS) -> Known:
    """Collect what is known of a work. ``emotions``: the names among which an item's strongest one is named.

    An item whose own names have no counterpart among them keeps its own.
    """
    if isinstance(work, LineShape):
        strongest = EMOTIONS[int(np.argmax(emotion_distribution(work.valence, work.arousal)))]
        return Known(LINE_CONTENT, work.valence, work.arousal, strongest)
    if isinstance(work, Work):
        strongest = EMOTIONS[int(np.argmax(work.emotion_distribution))]
        palette = prompts.palette(work.factors.warmth, work.factors.brightness)
        return Known(work.content, work.valence, work.arousal, strongest, palette)
    answer = work.answer
    if answer is None and work.options is not None and work.answer_index is not None:
        answer = work.options[work.answer_index]
    return Known(
        label=work.label,
        valence=work.valence,
        arousal=work.arousal,
        emotion=_strongest(work, emotions),
        induced=work.construct == "induced",
        utterances=tuple(text for text in work.utterances or () if len(text.split()) <= LONGEST_WORDS),
        question=work.question,
        answer=answer,
        audible=work.audible is not False,
    )


def emotions_of(item: Item, names: Sequence[str]) -> tuple[float, ...] | None:
    """Return the item's emotion distribution over ``names``, None where it has none that maps to them."""
    if tuple(names) == (item.emotion_names or EMOTIONS):
        return item.emotion_distribution
    return mapped_distribution(item, names)


def _strongest(item: Item, names: Sequence[str]) -> str | None:
    shares = emotions_of(item, names)
    if shares is None:
        names, shares = item.emotion_names or EMOTIONS, item.emotion_distribution
    return None if shares is None else names[int(np.argmax(shares))]


def answer_of(known: Known, question: StandardQuestion) -> str | None:
    """Return the correct answer in words, None where it is not known."""
    level = {
        prompts.AROUSAL: (known.arousal, prompts.AROUSAL_WORDS),
        prompts.VALENCE: (known.valence, prompts.VALENCE_WORDS),
    }
    if question in level:
        value, words = level[question]
        return None if value is None else prompts.level_word(value, words)
    if question == prompts.CAPTION:
        return _caption(known)
    answers = {
        prompts.CONTENT: known.label,
        prompts.PALETTE: known.palette,
        prompts.EMOTION: known.emotion,
        EMOTION_INDUCED: known.emotion,
    }
    return answers[question]


def _caption(known: Known) -> str | None:
    """Return a phrase on label and affect; a label such as "playing violin" takes no article."""
    if known.label is None or known.valence is None or known.arousal is None:
        return None
    phrase = prompts.caption(known.label, known.valence, known.arousal)
    return phrase[phrase.index(known.label) :] if known.label.split()[0].endswith("ing") else phrase


def true_answer(work: Work | LineShape, question: StandardQuestion) -> str:
    """Return the correct answer in words. Raises ValueError for the palette of a line shape."""
    answer = answer_of(known_of(work), question)
    if answer is None:
        raise ValueError("a line shape has no palette")
    return answer


def language_target(
    rng: np.random.Generator, known: Known, shares: Mapping[StandardQuestion, float], path: str
) -> tuple[str, str] | None:
    """Draw a question that can be answered on a path, and its answer; None where nothing is known.

    ``shares``: of the standard questions, as long as their answer is known. The item's own question and the
    raters' own words are asked for beside them.
    """
    weights = {
        EMOTION_INDUCED if known.induced and question == prompts.EMOTION else question: share
        for question, share in shares.items()
        if answer_of(known, question) is not None
    }
    own = None
    if known.question is not None and known.answer is not None and (known.audible or reads_frames(path)):
        own = StandardQuestion(known.question, "emotion", known.audible)
        weights[own] = OWN_SHARE
    if known.utterances:
        weights[FEELING] = FEELING_SHARE
    if not weights:
        return None
    question = choose_question(rng, weights)
    text = worded(rng, question)
    if question is own and known.answer is not None:
        return text, known.answer
    if question is FEELING:
        return text, known.utterances[int(rng.integers(len(known.utterances)))]
    answer = answer_of(known, question)
    assert answer is not None, "only questions with an answer have a weight"
    return text, answer


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
