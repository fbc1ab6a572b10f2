"""Positions of the rows of a sequence."""

from __future__ import annotations

import numpy as np
import pytest

from vaemotion.contract.positions import PictureGrid, advance_of, positions_of, text_places


def test_text_and_pictures_are_placed_behind_each_other() -> None:
    grids = [PictureGrid(2, 3), PictureGrid(1, 1)]
    parts = [text_places(2), grids[0].places(), text_places(1), grids[1].places(), text_places(2)]
    expected = [
        *[[0, 0, 0], [1, 1, 1]],
        *[[2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4]],
        [5, 5, 5],  # behind the longer side
        [6, 6, 6],
        *[[7, 7, 7], [8, 8, 8]],
    ]
    places = np.concatenate(parts)
    assert positions_of(places).tolist() == expected
    assert advance_of(places) == 9


def test_rows_go_on_where_others_ended() -> None:
    parts = [text_places(3), PictureGrid(3, 2).places(), text_places(2)]
    whole, start, pieces = positions_of(np.concatenate(parts)), 0, []
    for part in parts:
        pieces.append(positions_of(part, start))
        start += advance_of(part)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_without_pictures_rows_are_counted() -> None:
    np.testing.assert_array_equal(positions_of(text_places(4), start=3)[:, 0], [3, 4, 5, 6])
    assert positions_of(text_places(0)).shape == (0, 3)


def test_a_picture_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="0 × 2"):
        PictureGrid(0, 2)
