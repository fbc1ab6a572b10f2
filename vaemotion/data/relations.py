"""Questions about a picture and a sound together, from pairs that one modality alone cannot tell.

In: pictures and sounds with an arousal each. Out: pairs with the answer to one of two questions, and how far a reader gets who
knows one modality's arousal exactly. No label of a pair as a whole is made up: the answer follows from the two labels.

Agreement: a picture from the upper and one from the lower third of arousal meet a sound of each. Every stimulus stands in one
pair that agrees and in one that does not, so that either modality says nothing at all.

Which is calmer: exact balance is impossible here, whatever the pairs: the calmest of all stimuli is the calmer one in each of its
pairs, and without it the next calmest is. What can be had are ladders, pictures and sounds in turn, each at least ``GAP`` above
the one before: every stimulus is once the calmer and once the more stirring one, but for the ladder's two ends. With E
pairs in a ladder, knowing one modality exactly is worth at most 1 / (2 E) above chance; ladders are made in twos, one
that begins with a picture and one that begins with a sound, so that both modalities get alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

GAP = 0.2  # in arousal, a tenth of its scale: what is nearer is not clear
LEAST_PAIRS = 5  # in a ladder; a shorter one gives too much away
_FOLDS = 5


@dataclass(frozen=True)
class Relation:
    """A question about a picture and a sound. ``name``: for ids and sources."""

    name: str
    question: str
    options: tuple[str, ...]


AGREEMENT = Relation("agree", "Do picture and sound agree in arousal?", ("yes", "no"))
CALMER = Relation("calmer", "Which of the two is calmer?", ("picture", "sound"))


@dataclass(frozen=True)
class Stimulus:
    """A picture or a sound. ``arousal`` in [-1, 1]."""

    name: str
    arousal: float


@dataclass(frozen=True)
class Pair:
    """``block``: pairs of one block share stimuli, those of different blocks do not."""

    picture: Stimulus
    sound: Stimulus
    answer: str
    block: int


@dataclass(frozen=True)
class OneModality:
    """What a reader gets who knows the arousal of one modality exactly, and nothing of the other. ``learnt``: share right of a
    decision tree that learns from other stimuli; ``chance_low``, ``chance_high``: 95 % binomial interval of guessing; ``best``: share
    right of somebody who knows each stimulus's pairs by heart, which no rule exceeds."""

    relation: str
    known: str
    pairs: int
    learnt: float
    chance_low: float
    chance_high: float
    best: float


def agreement_pairs(
    pictures: Sequence[Stimulus], sounds: Sequence[Stimulus], count: int, seed: int
) -> list[Pair]:
    """About ``count`` pairs in blocks of four, or as many as the stimuli allow; each stimulus stands in one block."""
    rng = np.random.default_rng([seed, 3])
    (calm_pictures, stirring_pictures), (calm_sounds, stirring_sounds) = (
        _outer_thirds(stimuli, rng) for stimuli in (pictures, sounds)
    )
    pairs: list[Pair] = []
    blocks = zip(calm_pictures, stirring_pictures, calm_sounds, stirring_sounds, strict=False)
    for block, (low_picture, high_picture, low_sound, high_sound) in enumerate(blocks):
        if len(pairs) >= count:
            break
        pairs += [
            Pair(low_picture, low_sound, "yes", block),
            Pair(high_picture, high_sound, "yes", block),
            Pair(low_picture, high_sound, "no", block),
            Pair(high_picture, low_sound, "no", block),
        ]
    return pairs


def _outer_thirds(
    stimuli: Sequence[Stimulus], rng: np.random.Generator
) -> tuple[list[Stimulus], list[Stimulus]]:
    """The lower and the upper third by arousal, each shuffled. Equal values are ordered by chance."""
    ordered = _ordered(stimuli, rng)
    third = len(ordered) // 3
    parts = ordered[:third], ordered[len(ordered) - third :]
    low, high = ([part[i] for i in rng.permutation(len(part))] for part in parts)
    return low, high


def _ordered(stimuli: Sequence[Stimulus], rng: np.random.Generator) -> list[Stimulus]:
    shuffled = [stimuli[i] for i in rng.permutation(len(stimuli))]
    return sorted(shuffled, key=lambda stimulus: stimulus.arousal)


def calmer_pairs(
    pictures: Sequence[Stimulus], sounds: Sequence[Stimulus], count: int, seed: int
) -> list[Pair]:
    """About ``count`` pairs in twos of ladders, or as many as the stimuli allow; each stimulus stands in one ladder."""
    rng = np.random.default_rng([seed, 4])
    left = {"picture": _ordered(pictures, rng), "sound": _ordered(sounds, rng)}
    pairs: list[Pair] = []
    block = 0
    while len(pairs) < count:
        two = [_ladder(left, first) for first in ("picture", "sound")]
        if min(map(len, two)) <= LEAST_PAIRS:
            break
        for first, ladder in zip(("picture", "sound"), two, strict=True):
            pairs += _rungs(ladder, first, block)
            block += 1
    return pairs


def _ladder(left: dict[str, list[Stimulus]], first: str) -> list[Stimulus]:
    """Take a ladder out of what is left: each time the calmest stimulus of the other modality that is ``GAP`` above."""
    ladder: list[Stimulus] = []
    kind, floor = first, -np.inf
    while found := next((s for s in left[kind] if s.arousal >= floor), None):
        left[kind].remove(found)
        ladder.append(found)
        kind, floor = _other(kind), found.arousal + GAP
    return ladder


def _other(kind: str) -> str:
    return "sound" if kind == "picture" else "picture"


def _rungs(ladder: Sequence[Stimulus], first: str, block: int) -> list[Pair]:
    """The pairs of neighbours: of each the lower one is the calmer."""
    pairs: list[Pair] = []
    lower_kind = first
    for lower, upper in pairwise(ladder):
        picture, sound = (lower, upper) if lower_kind == "picture" else (upper, lower)
        pairs.append(Pair(picture, sound, lower_kind, block))
        lower_kind = _other(lower_kind)
    return pairs


def one_modality(relation: Relation, pairs: Sequence[Pair], known: str) -> OneModality:
    """See `OneModality`. ``known``: "picture" or "sound". Needs scikit-learn (extra ``train``), as its cross-validation keeps
    every stimulus's pairs together."""
    from scipy.stats import binom
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    stimuli = [pair.picture if known == "picture" else pair.sound for pair in pairs]
    arousal = np.array([[stimulus.arousal] for stimulus in stimuli])  # (n, 1)
    answers = np.array([relation.options.index(pair.answer) for pair in pairs])
    names = np.array([stimulus.name for stimulus in stimuli])
    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0)
    folds = GroupKFold(min(_FOLDS, len(set(names.tolist()))))
    learnt = cross_val_predict(tree, arousal, answers, groups=names, cv=folds)
    by_heart = sum(np.bincount(answers[names == name]).max() for name in np.unique(names))
    low, high = binom.interval(0.95, len(pairs), 1 / len(relation.options))
    n = len(pairs)
    right = float(np.mean(learnt == answers))
    return OneModality(relation.name, known, n, right, float(low / n), float(high / n), float(by_heart / n))
