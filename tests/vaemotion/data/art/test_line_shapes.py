"""Line drawings: measures and affect follow the outline, and the line is visible at the model's side."""

from __future__ import annotations

import numpy as np
import pytest

from vaemotion.contract import prompts
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.data.art.line_shapes import _measured, draw_line_shape, sample_line_shape
from vaemotion.data.instructions import true_answer

SHAPES = [sample_line_shape(seed) for seed in range(300)]


def polygon(corners: int, radius: float = 0.3) -> np.ndarray:
    angle = np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_a_shape_is_deterministic_and_lies_within_its_image() -> None:
    for shape in SHAPES[:30]:
        assert np.array_equal(shape.points, sample_line_shape(shape.seed).points)
        assert np.array_equal(draw_line_shape(shape), draw_line_shape(shape))
        assert (np.abs(shape.points - 0.5) <= 0.48).all()


def test_measures_are_those_of_known_outlines() -> None:
    """Check that convex outlines turn by 2 π, and that a square has only sharp corners, a circle none."""
    square, circle = _measured(polygon(4)), _measured(polygon(64))
    turning = np.log(2 / 5) / np.log(3)
    assert (square[0], circle[0]) == pytest.approx((turning, turning))
    assert (square[2], circle[2]) == pytest.approx((1, -1))
    star = np.where(np.arange(10)[:, None] % 2, polygon(10, 0.1), polygon(10, 0.3))
    assert _measured(star)[0] > square[0]
    assert _measured(polygon(4, 0.4))[1] - _measured(polygon(4, 0.2))[1] == pytest.approx(
        np.log(2) / np.log(3)
    )


def test_turning_raises_arousal_and_sharpness_lowers_valence() -> None:
    measures = np.array([shape.measures for shape in SHAPES])
    valence, arousal = (np.array([getattr(s, name) for s in SHAPES]) for name in ("valence", "arousal"))
    assert np.corrcoef(measures[:, 0], arousal)[0, 1] > 0.8
    assert np.corrcoef(measures[:, 2], valence)[0, 1] < -0.8
    assert (np.abs(arousal) <= 1).all()
    assert (np.abs(valence) <= 1).all()
    assert arousal.std() > 0.3


def test_the_line_is_visible_at_the_models_side() -> None:
    contrast = []
    for shape in SHAPES[:40]:
        frame = prepare_frame(draw_line_shape(shape), ImageConfig(side_px=96))[0]
        contrast.append(np.ptp(frame) / 2)
    assert min(contrast) > 0.15


def test_every_question_but_the_palette_has_an_answer() -> None:
    shape = SHAPES[0]
    assert true_answer(shape, prompts.CONTENT) == "abstract shape"
    assert true_answer(shape, prompts.AROUSAL) == prompts.level_word(shape.arousal, prompts.AROUSAL_WORDS)
    assert "abstract shape" in true_answer(shape, prompts.CAPTION)
    with pytest.raises(ValueError, match="no palette"):
        true_answer(shape, prompts.PALETTE)
