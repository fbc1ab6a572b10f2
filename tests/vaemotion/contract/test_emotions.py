"""The emotion categories and their places in the square of valence and arousal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract.emotions import (
    EMOTION_VALENCE_AROUSAL,
    EMOTIONS,
    PROTOTYPE_WIDTH,
    emotion_distribution,
)

IN_SQUARE = st.floats(-1, 1)


def test_the_vocabulary_is_artemis_nine() -> None:
    assert len(set(EMOTIONS)) == 9
    assert EMOTIONS[-1] == "something else"
    assert EMOTION_VALENCE_AROUSAL.shape == (9, 2)
    assert np.abs(EMOTION_VALENCE_AROUSAL).max() <= 1


@given(valence=IN_SQUARE, arousal=IN_SQUARE)
def test_everywhere_in_the_square_it_is_a_distribution(valence: float, arousal: float) -> None:
    distribution = emotion_distribution(valence, arousal)
    assert distribution.shape == (9,)
    assert (distribution >= 0).all()
    assert distribution.sum() == pytest.approx(1)


@pytest.mark.parametrize("index", range(9))
def test_at_its_own_place_each_emotion_is_the_likeliest(index: int) -> None:
    assert int(emotion_distribution(*EMOTION_VALENCE_AROUSAL[index]).argmax()) == index


def test_the_signs_are_those_of_the_circumplex() -> None:
    place = dict(zip(EMOTIONS, EMOTION_VALENCE_AROUSAL, strict=True))
    for pleasant in ("amusement", "awe", "contentment", "excitement"):
        assert place[pleasant][0] > 0
    for unpleasant in ("anger", "disgust", "fear", "sadness"):
        assert place[unpleasant][0] < 0
    for stirring, calm in (("excitement", "contentment"), ("anger", "sadness")):
        assert place[stirring][1] > 0 > place[calm][1]


def test_the_weights_are_gaussians_around_the_prototypes() -> None:
    fear, anger = EMOTIONS.index("fear"), EMOTIONS.index("anger")
    distribution = emotion_distribution(-0.45, 0.55)  # fear's own place
    squared = 0.25**2 + 0.20**2
    assert distribution[anger] / distribution[fear] == pytest.approx(
        np.exp(-squared / (2 * PROTOTYPE_WIDTH**2))
    )


def test_arrays_of_points_give_arrays_of_distributions() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (2, 4, 3))
    together = emotion_distribution(points[0], points[1])
    assert together.shape == (4, 3, 9)
    np.testing.assert_allclose(together[2, 1], emotion_distribution(points[0, 2, 1], points[1, 2, 1]))
