"""Emotion categories and their places in the square of valence and arousal.

In: valence and arousal in [-1, 1]. Out: a distribution over the nine categories of ArtEmis
(Achlioptas et al. 2021, "ArtEmis: Affective Language for Visual Art", CVPR). They are the default: the names
that a model tells apart stand in its checkpoint and in its bundle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vaemotion.contract.prompts import folded

EMOTIONS: tuple[str, ...] = (
    "amusement",
    "awe",
    "contentment",
    "excitement",
    "anger",
    "disgust",
    "fear",
    "sadness",
    "something else",
)

# Prototype (valence, arousal) of each category, placed after the circumplex (Russell 1980, "A circumplex
# model of affect", J. Pers. Soc. Psychol. 39:1161); "something else" is the neutral middle.
EMOTION_VALENCE_AROUSAL: npt.NDArray[np.float64] = np.array(
    [
        [0.70, 0.20],  # amusement
        [0.30, 0.50],  # awe
        [0.65, -0.55],  # contentment
        [0.70, 0.75],  # excitement
        [-0.70, 0.75],  # anger
        [-0.70, 0.15],  # disgust
        [-0.45, 0.55],  # fear
        [-0.65, -0.55],  # sadness
        [0.00, -0.10],  # something else
    ]
)

PROTOTYPE_WIDTH = 0.35  # standard deviation of a category around its prototype, in units of the square


def emotion_distribution(valence: npt.ArrayLike, arousal: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the distribution over ``EMOTIONS`` at a point: normalized Gaussians around the prototypes.

    valence, arousal: scalars or equal shapes (...), in [-1, 1]. Returns (..., 9), summing to 1.
    """
    point = np.stack([np.asarray(valence, np.float64), np.asarray(arousal, np.float64)], axis=-1)  # (..., 2)
    squared_distance = ((point[..., None, :] - EMOTION_VALENCE_AROUSAL) ** 2).sum(-1)  # (..., 9)
    weight = np.exp(-squared_distance / (2 * PROTOTYPE_WIDTH**2))
    return weight / weight.sum(-1, keepdims=True)


def emotion_names_problem(names: Sequence[object]) -> str | None:
    """Return what is wrong with the names of a model's emotions, as a predicate; None for nothing."""
    texts = [name for name in names if isinstance(name, str) and name.strip() and name.isprintable()]
    if len(texts) < 2 or len(texts) < len(names) or len({folded(text) for text in texts}) < len(texts):
        return f"must be two or more different names, got {', '.join(map(str, names)) or 'none'}"
    return None
