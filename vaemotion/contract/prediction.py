"""What a predictor is asked and what it answers, whether it runs a checkpoint or a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vaemotion.contract.front_end import Clip


@dataclass(frozen=True)
class Question:
    """A multiple-choice question. ``task``: "content" reads the plain tokens, "emotion" the enhanced ones. ``rotations``: how
    often it is also to be answered in words, its options listed in the prompt, see ``rotated_options``; 0: not at all."""

    text: str
    options: tuple[str, ...]
    task: str
    rotations: int = 0


def rotated_options(options: Sequence[str], rotations: int) -> tuple[tuple[str, ...], ...]:
    """``rotations`` evenly spaced circular rotations of the options, the first as they stand.

    With as many rotations as options this is CircularEval of MMBench (Liu et al. 2023, arXiv 2307.06281), where every option
    stands once in every place. Raises ValueError for more rotations than options.
    """
    n = len(options)
    if not 0 <= rotations <= n:
        raise ValueError(f"rotations must be 0 to {n}, the number of options, got {rotations}")
    starts = [k * n // rotations for k in range(rotations)]
    return tuple((*options[start:], *options[:start]) for start in starts)


@dataclass(frozen=True)
class Affect:
    """What a work expresses, or induces: valence and arousal in [-1, 1] with the predictive standard deviation of each, and a
    distribution over ``EMOTIONS``, (9,)."""

    valence: float
    arousal: float
    valence_sd: float
    arousal_sd: float
    emotions: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """``affect``: what the work expresses. ``answers``: for each question the mean token log-probability of each option,
    (n_options,). ``written``: for each question one text per rotation, in the order of ``rotated_options``. ``induced``: what
    the work makes people feel; None from a bundle that was exported without it."""

    affect: Affect
    answers: tuple[npt.NDArray[np.float64], ...]
    written: tuple[tuple[str, ...], ...] = ()
    induced: Affect | None = None


class Predict(Protocol):
    """``predict(clip, path, questions)``: reads the whole clip on ``path`` (one of ``PATHS``), window by window."""

    def __call__(self, clip: Clip, path: str, questions: Sequence[Question]) -> Prediction: ...
