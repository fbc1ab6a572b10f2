"""Rotations of a question's options."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract.prediction import rotated_options

OPTIONS = tuple("abcdefgh")


def test_as_many_rotations_as_options_put_every_option_once_in_every_place():
    rotations = rotated_options(OPTIONS, len(OPTIONS))
    assert rotations[0] == OPTIONS
    for place in range(len(OPTIONS)):
        assert sorted(rotation[place] for rotation in rotations) == sorted(OPTIONS)


@given(st.integers(2, 20), st.data())
def test_rotations_are_distinct_circular_and_evenly_spaced(n, data):
    options = tuple(map(str, range(n)))
    rotations = rotated_options(options, data.draw(st.integers(0, n)))
    starts = [int(rotation[0]) for rotation in rotations]
    assert all(r == (*options[s:], *options[:s]) for s, r in zip(starts, rotations, strict=True))
    steps = np.diff([*starts, n])
    assert not starts or (starts[0] == 0 and steps.min() >= 1 and np.ptp(steps) <= 1)


@pytest.mark.parametrize("rotations", [-1, 9])
def test_more_rotations_than_options_are_refused(rotations):
    with pytest.raises(ValueError, match="0 to 8, the number of options"):
        rotated_options(OPTIONS, rotations)
