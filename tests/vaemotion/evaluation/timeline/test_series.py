"""Series over time against NumPy and hand-computed values: interpolation, gaps, the common grid."""

from __future__ import annotations

import numpy as np
import pytest

from vaemotion.evaluation.timeline.series import Series, grid_s, join, lags_s, mean_series


def series(times_s: list[float], values: list[float]) -> Series:
    return Series(np.array(times_s, float), np.array(values, float))


def test_inside_one_piece_it_is_numpys_interpolation_and_outside_nothing() -> None:
    rng = np.random.default_rng(0)
    times_s = np.cumsum(rng.uniform(0.05, 0.4, 200))
    found = Series(times_s, rng.normal(size=200))
    asked = rng.uniform(-5, times_s[-1] + 5, 3000)
    values = found.at(asked)
    inside = (asked >= times_s[0]) & (asked <= times_s[-1])
    np.testing.assert_array_equal(np.isfinite(values), inside)
    np.testing.assert_allclose(values[inside], np.interp(asked[inside], times_s, found.values))
    np.testing.assert_array_equal(found.at(times_s), found.values)  # at its own times exactly


def test_a_gap_of_more_than_a_second_is_not_bridged_and_its_ends_are_values() -> None:
    found = series([0.0, 0.5, 1.0, 2.1, 2.6], [0, 1, 2, 3, 4])
    values = found.at(np.array([0.75, 1.0, 1.5, 2.0, 2.1, 2.35]))
    np.testing.assert_allclose(values, [1.5, 2, np.nan, np.nan, 3, 3.5])
    whole = series([0.0, 0.5, 1.0, 2.0, 2.5], [0, 1, 2, 3, 4])  # a gap of a second
    assert whole.at(np.array([1.5]))[0] == pytest.approx(2.5)


def test_values_every_two_seconds_are_interpolated_and_a_missing_one_is_a_gap() -> None:
    found = series([0, 2, 4, 8, 10], [0, 2, 4, 8, 10])
    np.testing.assert_allclose(found.at(np.array([1.0, 3.0, 5.0, 9.0])), [1, 3, np.nan, 9])


def test_one_value_stands_at_its_time_only() -> None:
    np.testing.assert_array_equal(series([3.0], [0.5]).at(np.array([2.9, 3.0, 3.1])), [np.nan, 0.5, np.nan])


def test_of_several_values_at_one_time_the_last_counts_and_any_order_is_sorted() -> None:
    found = Series.of([(2.0, 0.2), (1.0, 0.1), (2.0, 0.3)])
    assert (found.time_s.tolist(), found.values.tolist()) == ([1.0, 2.0], [0.1, 0.3])


def test_the_grid_is_the_multiples_of_a_step_within_a_span() -> None:
    np.testing.assert_allclose(grid_s(0.3, 1.2, 0.3), [0.3, 0.6, 0.9, 1.2])  # 0.1 + 0.2 is not 0.3
    np.testing.assert_allclose(grid_s(0.31, 1.19, 0.3), [0.6, 0.9])
    assert lags_s(1.0, 0.5).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert lags_s(0.0, 0.5).tolist() == [0.0]


def test_only_times_that_both_have_are_joined_and_a_lag_reads_the_labels_later() -> None:
    predicted = series([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    labels = series([2, 3, 4, 5, 6], [20, 30, 40, 50, 60])
    at_0, later = join(predicted, labels, 1.0), join(predicted, labels, 1.0, lag_s=2.0)
    assert at_0.time_s.tolist() == [2, 3, 4]
    assert (at_0.predicted.tolist(), at_0.truth.tolist()) == ([2, 3, 4], [20, 30, 40])
    assert (later.predicted.tolist(), later.truth.tolist()) == ([0, 1, 2, 3, 4], [20, 30, 40, 50, 60])
    assert len(join(predicted, series([9, 10], [0, 0]), 1.0).time_s) == 0


def test_the_mean_of_raters_is_over_those_who_cover_the_time() -> None:
    mean = mean_series([series([0, 1, 2], [0, 1, 2]), series([1, 2, 3], [3, 4, 5])])
    assert (mean.time_s.tolist(), mean.values.tolist()) == ([0, 1, 2, 3], [0, 2, 3, 5])
