"""Window arithmetic: properties of grid points and windows."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract.windows import WindowConfig, encode_count, grid_index, window_frame_indices

HOPS_S = st.sampled_from([0.02, 0.04, 0.1, 0.2, 0.5, 1.0])
CONFIGS = st.builds(
    lambda hop_s, ratio, frames: WindowConfig(hop_s, hop_s * ratio, frames, language_frames=1),
    HOPS_S,
    st.integers(1, 12),
    st.integers(1, 16),
)


@given(config=CONFIGS, newest=st.integers(0, 10_000), oldest=st.integers(0, 200))
def test_a_window_lies_on_the_grid_spaced_right_newest_last(
    config: WindowConfig, newest: int, oldest: int
) -> None:
    indices = window_frame_indices(newest, config, min(oldest, newest))
    assert indices[-1] == newest
    assert 1 <= len(indices) <= config.frames
    assert indices[0] >= min(oldest, newest)
    steps = {b - a for a, b in pairwise(indices)}
    assert steps <= {round(config.frame_spacing_s / config.frame_hop_s)}
    missing = indices[0] - config.hops_per_spacing
    # shorter only where nothing is older
    assert len(indices) == config.frames or missing < min(oldest, newest)


@given(tick=st.integers(0, 100_000), hop_s=HOPS_S, fraction=st.integers(0, 999))
def test_the_grid_point_is_the_newest_at_or_before_the_time(tick: int, hop_s: float, fraction: int) -> None:
    time_s = (tick + fraction / 1000) * hop_s
    assert grid_index(time_s, hop_s) == tick


def test_a_time_on_the_grid_counts_as_on_it_in_spite_of_rounding() -> None:
    assert [grid_index(k * 0.1, 0.1) for k in range(1000)] == list(range(1000))
    assert grid_index(sum([0.1] * 9), 0.1) == 9  # 0.8999999999999999


@given(milliseconds=st.integers(0, 100_000), hop_s=HOPS_S)
def test_encode_count_is_the_number_of_grid_points_before_the_end(milliseconds: int, hop_s: float) -> None:
    hop = Fraction(hop_s).limit_denominator(1000)
    duration = Fraction(milliseconds, 1000)
    count = encode_count(milliseconds / 1000, hop_s)
    assert count == 0 or (count - 1) * hop < duration
    assert count * hop >= duration


def test_the_visual_window_reaches_from_the_oldest_to_the_newest_frame() -> None:
    config = WindowConfig(0.1, 0.4, 8)
    indices = window_frame_indices(100, config)
    assert (indices[-1] - indices[0]) * config.frame_hop_s == pytest.approx(config.visual_window_s)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"frame_spacing_s": 0.25}, "frame_spacing_s.*0.25.*frame_hop_s"),
        ({"frame_spacing_s": 0.04}, "frame_spacing_s"),
        ({"frames": 0, "language_frames": 1}, "frames"),
        ({"language_frames": 9}, "language_frames.*1 to 8.*9"),
        ({"language_frames": 0}, "language_frames"),
    ],
)
def test_impossible_constants_are_named(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WindowConfig(**values)
