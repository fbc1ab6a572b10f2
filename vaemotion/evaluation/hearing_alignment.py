"""How close the model's answers from sound are to its answers from sight, whom it follows where they differ, and what of sight leaks
into answers about sound.

In: a model and procedural works, whose sound and sight belong together. Out: rates with intervals.
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
from vaemotion.data.procedural_art import CONTENT_CLASSES
from vaemotion.evaluation.hearing_material import Array, Indices, Material, other_clips
from vaemotion.evaluation.listening import asked, content_scores, hear, written
from vaemotion.evaluation.metrics import jensen_shannon, softmax
from vaemotion.evaluation.rows import Bootstrap, Estimate
from vaemotion.model.vaemotion_llm import VAEmotionLLM

RETRIEVED = (1, 5)
SCALES = (
    (prompts.CONTENT.text, CONTENT_CLASSES),
    (prompts.VALENCE.text, prompts.VALENCE_WORDS),
    (prompts.AROUSAL.text, prompts.AROUSAL_WORDS),
)

# Words that only sight can know. The first line of colours are those of the palette's answers ("bright warm colors").
_COLOURS = (
    "bright dark warm cool color colors "
    "colour colours colored coloured colorful colourful black white grey gray red orange yellow green blue purple violet pink brown "
    "golden silver pale vivid saturated"
)
_SHAPES = (
    "shape shapes circle circles circular round rounded square squares triangle triangles triangular rectangle rectangles oval spiral "
    "spirals star stars line lines curve curves curved angular jagged spiky pointed straight zigzag"
)
COLOUR_WORDS, SHAPE_WORDS = frozenset(_COLOURS.split()), frozenset(_SHAPES.split())
SHAPE_CLASS = "abstract shape"  # a class of ours: its name is no leak


@dataclass(frozen=True)
class Retrieval:
    """How often the right one of ``clips`` is among the first, ``recall``: by k. ``chance``: k / clips."""

    name: str
    clips: int
    recall: dict[int, Estimate]

    def chance(self, k: int) -> float:
        return min(1.0, k / self.clips)


@dataclass(frozen=True)
class Follows:
    """Answers to the sight of one class with the sound of another: the share that names the one, the other, neither. ``sight_alone`` and
    ``together``: how often the class is named from sight, and from sight with its own sound."""

    sight: Estimate
    sound: Estimate
    neither: Estimate
    sight_alone: Estimate
    together: Estimate


@dataclass(frozen=True)
class Leakage:
    """Share of the answers from sound alone that hold a colour or shape word, for one question on one material."""

    material: str
    question: str
    answers: int
    rate: Estimate
    examples: tuple[str, ...]


@dataclass(frozen=True)
class ShapeClass:
    """How often a clip of another class is called "abstract shape" in an answer to any of the questions."""

    material: str
    answers: int
    rate: Estimate | None


def retrieval(model: VAEmotionLLM, works: Material, bootstrap: Bootstrap) -> tuple[Retrieval, ...]:
    """Sound → sight and back by the answers' divergence, then by the tokens' means, then what the class alone would give."""
    heard = hear(model, works.log_mel)
    by_answers = divergences(
        answer_distributions(model, None, heard), answer_distributions(model, works.visual, None)
    )
    by_tokens = 1 - _cosines(heard.mean(1), works.visual.mean(1))
    by_class = (works.truth[:, None] != works.truth[None]).astype(np.float64)
    ways = {
        "sound → sight, by the answers": by_answers,
        "sight → sound, by the answers": by_answers.T,
        "sound → sight, by the tokens' means": by_tokens,
        "the class alone, perfectly named": by_class,
    }
    return tuple(retrieved(name, distance, works.works, bootstrap) for name, distance in ways.items())


def retrieved(name: str, distance: Array, works: Sequence[str], bootstrap: Bootstrap) -> Retrieval:
    """The diagonal of ``distance`` (n, n) is right, its rows are the queries; equally near ones stand in any order."""
    own = np.diag(distance)[:, None]
    ties = np.isclose(distance, own, rtol=0, atol=1e-9).sum(1)
    nearer = (distance < own - 1e-9).sum(1)
    found = {k: np.clip((k - nearer) / ties, 0.0, 1.0) for k in RETRIEVED}
    return Retrieval(name, len(distance), {k: bootstrap.mean(hits, works) for k, hits in found.items()})


def answer_distributions(model: VAEmotionLLM, visual: Tensor | None, audio: Tensor | None) -> list[Array]:
    """Softmax of the options' scores for each of ``SCALES``, (n, options) each."""
    given = visual if visual is not None else audio
    assert given is not None
    scores = (asked(model, visual, audio, len(given), question, options) for question, options in SCALES)
    return [softmax(s.double().cpu().numpy()) for s in scores]


def divergences(queries: Sequence[Array], gallery: Sequence[Array]) -> Array:
    """Jensen-Shannon divergence of every query's answers from every gallery entry's, summed over the questions, (n, n) bits."""
    n = len(queries[0])
    rows, columns = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    pairs = (jensen_shannon(p[rows], q[columns]) for p, q in zip(queries, gallery, strict=True))
    return np.sum(list(pairs), axis=0).reshape(n, n)


def _cosines(a: Tensor, b: Tensor) -> Array:
    """(n, D), (n, D) → (n, n)."""
    a, b = (torch.nn.functional.normalize(x.double().cpu(), dim=1) for x in (a, b))
    return (a @ b.T).numpy()


def follows(model: VAEmotionLLM, works: Material, bootstrap: Bootstrap) -> Follows:
    """See `Follows`."""
    heard, n = hear(model, works.log_mel), len(works.truth)
    others = other_clips(works.truth, bootstrap.seed)

    def named(audio: Tensor | None) -> npt.NDArray[np.intp]:
        return content_scores(model, works.visual, audio, n).cpu().numpy().argmax(1)

    swapped = named(heard[torch.from_numpy(others).to(heard.device)])
    shares = follow_counts(swapped, works.truth, works.truth[others])
    references = [(named(audio) == works.truth).astype(np.float64) for audio in (None, heard)]
    return Follows(*(bootstrap.mean(hits, works.works) for hits in (*shares, *references)))


def follow_counts(named: npt.NDArray[np.intp], seen: Indices, heard: Indices) -> tuple[Array, Array, Array]:
    """1 for each answer (n,) that names the class seen, the class heard, neither of them."""
    sight, sound = named == seen, named == heard
    return sight.astype(np.float64), sound.astype(np.float64), (~sight & ~sound).astype(np.float64)


def leakage(
    model: VAEmotionLLM, material: Material, bootstrap: Bootstrap
) -> tuple[tuple[Leakage, ...], ShapeClass]:
    """Greedy answers about one window of each clip to every standard question that sound can answer."""
    heard = hear(model, material.log_mel[torch.from_numpy(material.first_windows)])
    rows: list[Leakage] = []
    shapes: list[Array] = []
    for question in prompts.STANDARD_QUESTIONS:
        if not question.audible:
            continue
        answers = written(model, heard, question.text)
        leaks = np.array([bool(visual_words(answer)) for answer in answers], np.float64)
        examples = sorted({a for a, leaks_sight in zip(answers, leaks, strict=True) if leaks_sight})[:3]
        rate = bootstrap.mean(leaks, material.works)
        rows.append(Leakage(material.name, question.text, len(answers), rate, tuple(examples)))
        shapes.append(np.array([SHAPE_CLASS in answer.lower() for answer in answers], np.float64))
    other = np.array([material.options[k] != SHAPE_CLASS for k in material.truth])
    named = np.stack(shapes)[:, other]  # (questions, clips)
    works = [work for work, is_other in zip(material.works, other, strict=True) if is_other]
    return tuple(rows), ShapeClass(
        material.name, named.size, bootstrap.mean(named.mean(0), works) if works else None
    )


def visual_words(answer: str) -> list[str]:
    """The colour and shape words of an answer, without those in the name of the class "abstract shape"."""
    words = re.findall(r"[a-z]+", answer.lower().replace(SHAPE_CLASS, " "))
    return [word for word in words if word in COLOUR_WORDS or word in SHAPE_WORDS]
