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
    """A multiple-choice question. ``task``: "content" reads the plain tokens, "emotion" the enhanced ones."""

    text: str
    options: tuple[str, ...]
    task: str


@dataclass(frozen=True)
class Affect:
    """What a work expresses: valence and arousal in [-1, 1] with the predictive standard deviation of each, and a
    distribution over ``EMOTIONS``, (9,)."""

    valence: float
    arousal: float
    valence_sd: float
    arousal_sd: float
    emotions: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """``answers``: for each question the mean token log-probability of each option, (n_options,)."""

    affect: Affect
    answers: tuple[npt.NDArray[np.float64], ...]


class Predict(Protocol):
    """``predict(clip, path, questions)``: reads the clip's last window on ``path`` (one of ``PATHS``)."""

    def __call__(self, clip: Clip, path: str, questions: Sequence[Question]) -> Prediction: ...
