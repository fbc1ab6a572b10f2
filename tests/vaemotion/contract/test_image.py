"""The image front end: resampling, rotation, normalization."""

from __future__ import annotations

import numpy as np
import pytest

from vaemotion.contract.image import ImageConfig, prepare_frame, rotate, squash

CONFIG = ImageConfig(side_px=32)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_fine_noise_is_averaged_and_not_picked() -> None:
    image = noise(512, 512)
    expected = image.reshape(32, 16, 32, 16, 3).mean((1, 3))  # each pixel is the mean of its 16 x 16 block
    assert np.abs(squash(image, 32) - expected).max() <= 1
    naive = image[8::16, 8::16]
    assert squash(image, 32).std() < naive.std() / 8  # 256 pixels averaged: 16 times less noise


def test_a_checkerboard_finer_than_the_pixels_becomes_gray() -> None:
    image = (np.indices((192, 320)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert np.abs(squash(image, 32).astype(int) - 127).max() <= 1


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = noise(32, 32)
    assert np.array_equal(squash(image, 32), image)


def test_growing_is_smooth_and_makes_no_new_extremes() -> None:
    image = np.array([[0, 255], [0, 255]], np.uint8)[..., None].repeat(3, axis=2)
    grown = squash(image, 32)[..., 0].astype(int)
    assert grown.shape == (32, 32)
    assert (np.diff(grown, axis=1) >= 0).all()
    assert np.diff(grown, axis=1).max() < 20
    assert (grown[:, 0], grown[:, -1]) == (pytest.approx(0), pytest.approx(255))


@pytest.mark.parametrize(
    ("height", "width"), [(480, 640), (640, 480), (16, 640), (640, 16), (1, 1), (33, 31)]
)
def test_any_size_becomes_the_square(height: int, width: int) -> None:
    row = np.linspace(0, 255, width).astype(np.uint8)
    image = np.broadcast_to(row[None, :, None], (height, width, 3)).copy()
    square = squash(image, 32)
    assert square.shape == (32, 32, 3)
    if width > 1:  # left stays left, right stays right, whichever side was squashed
        assert square[:, 0].max() < square[:, 16].min() < square[:, -1].min()


def test_area_averaging_holds_for_the_shrinking_side_when_the_other_one_grows() -> None:
    image = (np.arange(640) % 2 * 255).astype(np.uint8)[None, :, None].repeat(16, axis=0).repeat(3, axis=2)
    assert np.abs(squash(image, 32).astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("degrees", "corner"),
    [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0)), (-90, (-1, 0)), (450, (0, -1))],
)
def test_rotation_is_clockwise(degrees: int, corner: tuple[int, int]) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[0, 0] = 255
    rotated = rotate(image, degrees)
    assert rotated.shape[:2] == ((20, 30) if degrees % 180 == 0 else (30, 20))
    assert rotated[corner].min() == 255
    assert rotated.sum() == 3 * 255


def test_rotation_comes_before_squashing() -> None:
    image = noise(64, 128)
    turned = np.ascontiguousarray(np.rot90(image, -1))
    assert np.array_equal(prepare_frame(image, CONFIG, 90), prepare_frame(turned, CONFIG))


def test_an_oblique_rotation_is_refused() -> None:
    with pytest.raises(ValueError, match="45"):
        prepare_frame(noise(8, 8), CONFIG, 45)


def test_channels_come_first_and_values_fill_minus_one_to_one() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0], image[..., 1] = 255, 128
    prepared = prepare_frame(image, CONFIG)
    assert prepared.shape == (3, 32, 32)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    np.testing.assert_allclose(prepared[:, 5, 7], [1.0, 2 * 128 / 255 - 1, -1.0], atol=1e-6)


def test_mean_and_spread_are_the_configured_ones() -> None:
    prepared = prepare_frame(np.full((8, 8, 3), 51, np.uint8), ImageConfig(8, mean=0.4, std=0.25))
    np.testing.assert_allclose(prepared, (0.2 - 0.4) / 0.25, atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["grayscale", "one channel", "alpha", "floats", "empty"],
)
@pytest.mark.parametrize("degrees", [0, 90])
def test_what_is_no_rgb_image_is_refused_with_its_shape(image: np.ndarray, degrees: int) -> None:
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8 RGB, got shape \(\d"):
        prepare_frame(image, CONFIG, degrees)
