"""Questions to a predictor and its predictions, for checkpoints and bundles alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vaemotion.contract.front_end import Clip


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    ``task``: "content" reads the plain tokens, "emotion" the enhanced ones. ``rotations``: number of times
    that it is also answered in words, with its options listed in the prompt (``rotated_options``).
    """

    text: str
    options: tuple[str, ...]
    task: str
    rotations: int = 0


def rotated_options(options: Sequence[str], rotations: int) -> tuple[tuple[str, ...], ...]:
    """Return ``rotations`` evenly spaced circular rotations of the options, the first unrotated.

    With as many rotations as options this is CircularEval of MMBench (Liu et al. 2023, arXiv 2307.06281):
    every option stands once in every place. Raises ValueError for more rotations than options.
    """
    n = len(options)
    if not 0 <= rotations <= n:
        raise ValueError(f"rotations must be 0 to {n}, the number of options, got {rotations}")
    starts = [k * n // rotations for k in range(rotations)]
    return tuple((*options[start:], *options[:start]) for start in starts)


@dataclass(frozen=True)
class Affect:
    """The affect that a work expresses or induces.

    ``valence`` and ``arousal`` in [-1, 1], each with its predictive standard deviation; ``emotions``: a
    distribution over the model's emotions, (E,); their names stand in its checkpoint and its bundle.
    """

    valence: float
    arousal: float
    valence_sd: float
    arousal_sd: float
    emotions: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """A predictor's output for one clip.

    ``affect``: the affect that the work expresses. ``answers``: for each question the mean token
    log-probability of each option, (n_options,). ``written``: for each question one text per rotation, in
    the order of ``rotated_options``. ``induced``: the affect that the work induces in people; None from a
    bundle that was exported without it.
    """

    affect: Affect
    answers: tuple[npt.NDArray[np.float64], ...]
    written: tuple[tuple[str, ...], ...] = ()
    induced: Affect | None = None


class Predict(Protocol):
    """Read a whole clip on ``path`` (one of ``PATHS``), window by window, and answer questions about it."""

    def __call__(self, clip: Clip, path: str, questions: Sequence[Question]) -> Prediction: ...
