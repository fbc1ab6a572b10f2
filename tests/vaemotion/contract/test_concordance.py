"""The CCC against its definition and its known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaemotion.contract.concordance import ccc, weighted_ccc


def by_definition(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Compute Lin's equation with exact sums of Python floats."""
    ps, ts, n = predicted.tolist(), truth.tolist(), len(truth)
    mean_p, mean_t = math.fsum(ps) / n, math.fsum(ts) / n
    covariance = math.fsum((p - mean_p) * (t - mean_t) for p, t in zip(ps, ts, strict=True)) / n
    variances = math.fsum((p - mean_p) ** 2 for p in ps) + math.fsum((t - mean_t) ** 2 for t in ts)
    return 2 * covariance / (variances / n + (mean_p - mean_t) ** 2)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 20, 500]), st.sampled_from([0.0, 0.5, 100.0]))
def test_it_is_lins_equation_wherever_the_values_lie(seed: int, n: int, offset: float) -> None:
    predicted, truth = np.random.default_rng(seed).normal(size=(2, n)) + offset
    assert ccc(predicted, truth) == pytest.approx(by_definition(predicted, truth), abs=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_weights_count_repetitions_of_a_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.normal(size=(2, 20))
    weights = rng.multinomial(20, [1 / 20] * 20, 5)
    expected = [by_definition(np.repeat(predicted, row), np.repeat(truth, row)) for row in weights]
    np.testing.assert_allclose(weighted_ccc(predicted, truth, weights), expected, atol=1e-12)


def test_equal_values_have_one_and_opposite_ones_minus_one() -> None:
    values = np.random.default_rng(1).uniform(-1, 1, 50)
    values -= values.mean()
    assert ccc(values, values) == 1
    assert ccc(-values, values) == pytest.approx(-1)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0])
def test_a_constant_has_no_concordance_with_anything_but_itself(constant: float) -> None:
    values = np.random.default_rng(2).uniform(-1, 1, 50)
    same = np.full(50, constant)
    assert ccc(same, values) == pytest.approx(0, abs=1e-12)
    assert ccc(same, same) == 1
    assert ccc(same, same + 0.5) == pytest.approx(0, abs=1e-12)


def test_float32_counts_in_double_precision_and_nan_stays_nan() -> None:
    predicted, truth = np.random.default_rng(3).normal(size=(2, 1000)).astype(np.float32)
    assert ccc(predicted, truth) == pytest.approx(by_definition(predicted, truth), abs=1e-12)
    predicted[3] = np.nan
    assert math.isnan(ccc(predicted, truth))
