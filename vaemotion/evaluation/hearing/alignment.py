"""Agreement of answers from sound with answers from visual input: retrieval, swapped sound, leakage.

Retrieval compares the answers of each clip's sound with those of every clip's frames. Swapped sound shows
which modality the model follows where they differ. Leakage is the share of answers from sound that use visual
words. In: a model and clips with their own sound. Out: rates with intervals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.evaluation.benchmark.rows import Bootstrap, Estimate
from vaemotion.evaluation.hearing.listening import encode_audio, greedy_answers, question_scores
from vaemotion.evaluation.hearing.material import Array, Indices, Material, other_clips
from vaemotion.evaluation.metrics import jensen_shannon, softmax
from vaemotion.model.vaemotion_llm import VAEmotionLLM

RETRIEVED = (1, 5)
LEVELS = (
    (prompts.VALENCE.text, prompts.VALENCE_WORDS),
    (prompts.AROUSAL.text, prompts.AROUSAL_WORDS),
)

# Words for what only frames show. The first line of colors holds those of the palette's answers
# ("bright warm colors").
_COLORS = (
    "bright dark warm cool color colors "
    "colour colours colored coloured colorful colourful black white grey gray red orange yellow green blue "
    "purple violet pink brown golden silver pale vivid saturated"
)
_SHAPES = (
    "shape shapes circle circles circular round rounded square squares triangle triangles triangular "
    "rectangle rectangles oval spiral spirals star stars line lines curve curves curved angular jagged spiky "
    "pointed straight zigzag"
)
COLOR_WORDS, SHAPE_WORDS = frozenset(_COLORS.split()), frozenset(_SHAPES.split())


@dataclass(frozen=True)
class Retrieval:
    """Recall of one way of ranking the clips of a material.

    ``recall``: by k, the share of queries whose own clip is among the first k of ``clips``.
    """

    material: str
    name: str
    clips: int
    recall: dict[int, Estimate]

    def chance(self, k: int) -> float:
        """Return the recall at k of a random ranking."""
        return min(1.0, k / self.clips)


@dataclass(frozen=True)
class SwappedSound:
    """Shares of answers to the frames of one class with the sound of another.

    ``sight``, ``sound``, ``neither``: the share that names the class of the frames, of the sound, of neither.
    ``sight_alone``, ``together``: for comparison, accuracy from the frames alone and from the frames with
    their own sound.
    """

    material: str
    sight: Estimate
    sound: Estimate
    neither: Estimate
    sight_alone: Estimate
    together: Estimate


@dataclass(frozen=True)
class Leakage:
    """Share of answers from sound alone that hold a color or shape word, for one question on one material."""

    material: str
    question: str
    answers: int
    rate: Estimate
    examples: tuple[str, ...]


@dataclass(frozen=True)
class VisualClass:
    """Share of answers about clips of other classes that hold the name of a class with a visual word in it.

    Such a name does not count as a leak. The share is over all questions.
    """

    material: str
    name: str
    answers: int
    rate: Estimate | None


def retrieval(model: VAEmotionLLM, clips: Material, bootstrap: Bootstrap) -> tuple[Retrieval, ...]:
    """Rank clips with frames by divergence of answers, by distance of mean tokens, and by the class alone."""
    audio = encode_audio(model, clips.log_mel)
    by_answers = divergences(
        answer_distributions(model, clips, None, audio),
        answer_distributions(model, clips, clips.visual, None),
    )
    by_tokens = 1 - _cosines(audio.mean(1), clips.visual.mean(1))
    by_class = (clips.truth[:, None] != clips.truth[None]).astype(np.float64)
    ways = {
        "sound → sight, by the answers": by_answers,
        "sight → sound, by the answers": by_answers.T,
        "sound → sight, by the tokens' means": by_tokens,
        "the class alone, perfectly named": by_class,
    }
    return tuple(
        ranking_recall(clips.name, name, distance, clips.works, bootstrap) for name, distance in ways.items()
    )


def ranking_recall(
    material: str, name: str, distance: Array, works: Sequence[str], bootstrap: Bootstrap
) -> Retrieval:
    """Compute the recall of a ranking by distance (n, n): rows are queries, the diagonal is right.

    Clips at equal distance are taken in random order, in expectation.
    """
    own = np.diag(distance)[:, None]
    ties = np.isclose(distance, own, rtol=0, atol=1e-9).sum(1)
    nearer = (distance < own - 1e-9).sum(1)
    found = {k: np.clip((k - nearer) / ties, 0.0, 1.0) for k in RETRIEVED}
    return Retrieval(
        material, name, len(distance), {k: bootstrap.mean(hits, works) for k, hits in found.items()}
    )


def answer_distributions(
    model: VAEmotionLLM, clips: Material, visual: Tensor | None, audio: Tensor | None
) -> list[Array]:
    """Return the softmax of the scores of the clips' options and of ``LEVELS``, (n, options) each."""
    given = visual if visual is not None else audio
    assert given is not None
    n = len(given)
    scales = ((clips.question, clips.options), *LEVELS)
    scores = (question_scores(model, visual, audio, n, question, options) for question, options in scales)
    return [softmax(s.double().cpu().numpy()) for s in scores]


def divergences(queries: Sequence[Array], gallery: Sequence[Array]) -> Array:
    """Return the divergence of every query's answers from every gallery entry's, (n, n) in bits.

    It is the Jensen-Shannon divergence, summed over the questions.
    """
    n = len(queries[0])
    rows, columns = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    pairs = (jensen_shannon(p[rows], q[columns]) for p, q in zip(queries, gallery, strict=True))
    return np.sum(list(pairs), axis=0).reshape(n, n)


def _cosines(a: Tensor, b: Tensor) -> Array:
    """Return the cosine of every pair of rows: (n, D), (n, D) → (n, n)."""
    a, b = (torch.nn.functional.normalize(x.double().cpu(), dim=1) for x in (a, b))
    return (a @ b.T).numpy()


def swapped_sound(model: VAEmotionLLM, clips: Material, bootstrap: Bootstrap) -> SwappedSound:
    """Ask about the frames of each clip with the sound of a clip of another class.

    Raises UsageError for clips of which more than half are of one class.
    """
    own, n = encode_audio(model, clips.log_mel), len(clips.truth)
    others = other_clips(clips.truth, bootstrap.seed)

    def chosen(audio: Tensor | None) -> npt.NDArray[np.intp]:
        scores = question_scores(model, clips.visual, audio, n, clips.question, clips.options)
        return scores.cpu().numpy().argmax(1)

    swapped = chosen(own[torch.from_numpy(others).to(own.device)])
    hits = swapped_sound_hits(swapped, clips.truth, clips.truth[others])
    references = [(chosen(audio) == clips.truth).astype(np.float64) for audio in (None, own)]
    return SwappedSound(clips.name, *(bootstrap.mean(values, clips.works) for values in (*hits, *references)))


def swapped_sound_hits(
    chosen: npt.NDArray[np.intp], visual: Indices, audio: Indices
) -> tuple[Array, Array, Array]:
    """Mark the answers (n,) that name the class of the frames, the class of the sound, or neither."""
    sight, sound = chosen == visual, chosen == audio
    return sight.astype(np.float64), sound.astype(np.float64), (~sight & ~sound).astype(np.float64)


def leakage(
    model: VAEmotionLLM, material: Material, bootstrap: Bootstrap
) -> tuple[tuple[Leakage, ...], tuple[VisualClass, ...]]:
    """Count visual words in greedy answers from sound alone.

    One window of each clip is asked every standard question that sound can answer.
    """
    audio = encode_audio(model, material.log_mel[torch.from_numpy(material.first_windows)])
    rows: list[Leakage] = []
    given: list[list[str]] = []
    for question in prompts.STANDARD_QUESTIONS:
        if not question.audible:
            continue
        answers = greedy_answers(model, audio, question.text)
        given.append(answers)
        leaks = np.array([bool(visual_words(answer, material.options)) for answer in answers], np.float64)
        examples = sorted({answer for answer, leak in zip(answers, leaks, strict=True) if leak})[:3]
        rate = bootstrap.mean(leaks, material.works)
        rows.append(Leakage(material.name, question.text, len(answers), rate, tuple(examples)))
    visual = [name for name in material.options if visual_words(name)]
    return tuple(rows), tuple(_visual_class(name, given, material, bootstrap) for name in visual)


def _visual_class(
    name: str, given: Sequence[Sequence[str]], material: Material, bootstrap: Bootstrap
) -> VisualClass:
    held = np.array([[name.lower() in answer.lower() for answer in answers] for answers in given], np.float64)
    other = np.array([material.options[k] != name for k in material.truth])
    hits = held[:, other]  # (questions, clips)
    works = [work for work, is_other in zip(material.works, other, strict=True) if is_other]
    rate = bootstrap.mean(hits.mean(0), works) if works else None
    return VisualClass(material.name, name, hits.size, rate)


def visual_words(answer: str, names: Sequence[str] = ()) -> list[str]:
    """List the color and shape words of an answer, without those in ``names``, such as of its classes."""
    rest = answer.lower()
    for name in names:
        rest = rest.replace(name.lower(), " ")
    return [word for word in re.findall(r"[a-z]+", rest) if word in COLOR_WORDS or word in SHAPE_WORDS]
