"""Emotion categories and their places in the square of valence and arousal.

In: valence and arousal in [-1, 1]. Out: a distribution over the nine categories of ArtEmis
(Achlioptas et al. 2021, "ArtEmis: Affective Language for Visual Art", CVPR).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
