"""Questions about an image and a sound together, from pairs that one modality alone cannot answer.

In: visual stimuli and sounds, each with an arousal. Out: pairs with the answer to one of two questions, and
the accuracy that knowledge of one modality alone reaches. The answer follows from the two arousals; a pair
has no label of its own.

Agreement: one visual stimulus from the lower and one from the upper third of arousal are each paired with a
sound from the lower and one from the upper third. Every stimulus is in one pair that agrees and in one that
does not, so one modality alone carries no information about the answer.

Calmer: exact balance is impossible for this question, because the calmest of all stimuli is the calmer one
in each of its pairs. The pairs therefore come from chains: visual stimuli and sounds in turn, each at least
``GAP`` above the one before. Every stimulus is the calmer one once and the more arousing one once, except
at the two ends of a chain. In a chain of E pairs, exact knowledge of one modality gains at most 1 / (2 E)
above chance. Chains come in twos, one starting with a visual stimulus and one with a sound, so that both
modalities gain the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

GAP = 0.2  # smallest difference in arousal, a tenth of its scale; a smaller one is not clear
LEAST_PAIRS = 5  # a chain must have more pairs, because a shorter one reveals too much
MODALITIES: tuple[str, str] = ("visual", "sound")
_FOLDS = 5


@dataclass(frozen=True)
class Relation:
    """A question about a visual stimulus and a sound. ``name``: the part of ids and sources."""

    name: str
    question: str
    options: tuple[str, ...]


AGREEMENT = Relation("agree", "Do picture and sound agree in arousal?", ("yes", "no"))
CALMER = Relation("calmer", "Which of the two is calmer?", ("picture", "sound"))
_CALMER_ANSWER: dict[str, str] = dict(zip(MODALITIES, CALMER.options, strict=True))


@dataclass(frozen=True)
class Stimulus:
    """A visual stimulus or a sound. ``arousal``: in [-1, 1]."""

    name: str
    arousal: float


@dataclass(frozen=True)
class Pair:
    """A visual stimulus and a sound. ``block``: only pairs of one block share stimuli."""

    visual: Stimulus
    sound: Stimulus
    answer: str
    block: int


@dataclass(frozen=True)
class ModalityBaseline:
    """The accuracy that exact knowledge of one modality's arousal reaches on a question's pairs.

    ``known``: one of ``MODALITIES``. ``learned``: accuracy of a decision tree trained on other stimuli.
    ``chance_low``, ``chance_high``: 95 % binomial interval of guessing. ``memorized``: accuracy with the
    majority answer of each stimulus, the upper bound of every rule.
    """

    relation: str
    known: str
    pairs: int
    learned: float
    chance_low: float
    chance_high: float
    memorized: float


def agreement_pairs(
    visuals: Sequence[Stimulus], sounds: Sequence[Stimulus], count: int, seed: int
) -> list[Pair]:
    """Make about ``count`` pairs in blocks of four, or as many as the stimuli allow.

    Each stimulus is in one block at most.
    """
    rng = np.random.default_rng([seed, 3])
    (low_visuals, high_visuals), (low_sounds, high_sounds) = (
        _outer_thirds(stimuli, rng) for stimuli in (visuals, sounds)
    )
    pairs: list[Pair] = []
    blocks = zip(low_visuals, high_visuals, low_sounds, high_sounds, strict=False)
    for block, (low_visual, high_visual, low_sound, high_sound) in enumerate(blocks):
        if len(pairs) >= count:
            break
        pairs += [
            Pair(low_visual, low_sound, "yes", block),
            Pair(high_visual, high_sound, "yes", block),
            Pair(low_visual, high_sound, "no", block),
            Pair(high_visual, low_sound, "no", block),
        ]
    return pairs


def _outer_thirds(
    stimuli: Sequence[Stimulus], rng: np.random.Generator
) -> tuple[list[Stimulus], list[Stimulus]]:
    """Return the lower and the upper third by arousal, each shuffled; ties are ordered at random."""
    ordered = _ordered(stimuli, rng)
    third = len(ordered) // 3
    parts = ordered[:third], ordered[len(ordered) - third :]
    low, high = ([part[i] for i in rng.permutation(len(part))] for part in parts)
    return low, high


def _ordered(stimuli: Sequence[Stimulus], rng: np.random.Generator) -> list[Stimulus]:
    shuffled = [stimuli[i] for i in rng.permutation(len(stimuli))]
    return sorted(shuffled, key=lambda stimulus: stimulus.arousal)


def calmer_pairs(
    visuals: Sequence[Stimulus], sounds: Sequence[Stimulus], count: int, seed: int
) -> list[Pair]:
    """Make about ``count`` pairs from twos of chains, or as many as the stimuli allow.

    Each stimulus is in one chain at most.
    """
    rng = np.random.default_rng([seed, 4])
    left = {"visual": _ordered(visuals, rng), "sound": _ordered(sounds, rng)}
    pairs: list[Pair] = []
    block = 0
    while len(pairs) < count:
        chains = [_chain(left, first) for first in MODALITIES]
        if min(map(len, chains)) <= LEAST_PAIRS:
            break
        for first, chain in zip(MODALITIES, chains, strict=True):
            pairs += _neighbor_pairs(chain, first, block)
            block += 1
    return pairs


def _chain(left: dict[str, list[Stimulus]], first: str) -> list[Stimulus]:
    """Take a chain out of what is left: each time the calmest stimulus that is ``GAP`` above the last one."""
    chain: list[Stimulus] = []
    modality, floor = first, -np.inf
    while found := next((s for s in left[modality] if s.arousal >= floor), None):
        left[modality].remove(found)
        chain.append(found)
        modality, floor = _other(modality), found.arousal + GAP
    return chain


def _other(modality: str) -> str:
    return "sound" if modality == "visual" else "visual"


def _neighbor_pairs(chain: Sequence[Stimulus], first: str, block: int) -> list[Pair]:
    """Pair the neighbors of a chain; the lower one of each pair is the calmer."""
    pairs: list[Pair] = []
    calmer = first
    for lower, upper in pairwise(chain):
        visual, sound = (lower, upper) if calmer == "visual" else (upper, lower)
        pairs.append(Pair(visual, sound, _CALMER_ANSWER[calmer], block))
        calmer = _other(calmer)
    return pairs


def modality_baseline(relation: Relation, pairs: Sequence[Pair], known: str) -> ModalityBaseline:
    """Measure the accuracy that exact knowledge of one modality's arousal reaches.

    ``known``: one of ``MODALITIES``. The cross-validation keeps the pairs of a stimulus together. Needs
    scikit-learn (extra ``train``).
    """
    from scipy.stats import binom
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    stimuli = [pair.visual if known == "visual" else pair.sound for pair in pairs]
    arousal = np.array([[stimulus.arousal] for stimulus in stimuli])  # (n, 1)
    answers = np.array([relation.options.index(pair.answer) for pair in pairs])
    names = np.array([stimulus.name for stimulus in stimuli])
    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0)
    folds = GroupKFold(min(_FOLDS, len(set(names.tolist()))))
    predicted = cross_val_predict(tree, arousal, answers, groups=names, cv=folds)
    majority = sum(np.bincount(answers[names == name]).max() for name in np.unique(names))
    n = len(pairs)
    low, high = binom.interval(0.95, n, 1 / len(relation.options))
    return ModalityBaseline(
        relation=relation.name,
        known=known,
        pairs=n,
        learned=float(np.mean(predicted == answers)),
        chance_low=float(low / n),
        chance_high=float(high / n),
        memorized=float(majority / n),
    )
