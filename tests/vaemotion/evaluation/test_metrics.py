import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import norm, pearsonr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from vaemotion.evaluation.metrics import (
    accuracy,
    bootstrap_interval,
    ccc,
    gaussian_nll,
    jensen_shannon,
    macro_f1,
    pcc,
    rmse,
    softmax,
    unweighted_average_recall,
)

RNG = np.random.default_rng(0)
X = RNG.normal(0.2, 0.7, 200)
Y = 0.6 * X + RNG.normal(-0.1, 0.4, 200)


def ccc_by_pearson(x, y) -> float:
    """Lin (1989), eq. 2: rho times the bias correction C_b."""
    rho = pearsonr(x, y).statistic
    v, u = np.std(x) / np.std(y), (np.mean(x) - np.mean(y)) / math.sqrt(np.std(x) * np.std(y))
    return rho * 2 / (v + 1 / v + u**2)


def test_parity_with_independent_implementations():
    assert ccc(X, Y) == pytest.approx(ccc_by_pearson(X, Y), abs=1e-12)
    assert pcc(X, Y) == pytest.approx(pearsonr(X, Y).statistic, abs=1e-12)
    assert rmse(X, Y) == pytest.approx(math.sqrt(sum((a - b) ** 2 for a, b in zip(X, Y, strict=True)) / 200))
    assert gaussian_nll(X, np.full(200, 0.3), Y) == pytest.approx(-norm.logpdf(Y, X, 0.3).mean())
    chosen, truth = RNG.integers(0, 4, 100), RNG.integers(0, 5, 100)
    assert accuracy(chosen, truth) == pytest.approx(accuracy_score(truth, chosen))
    assert macro_f1(chosen, truth) == pytest.approx(f1_score(truth, chosen, average="macro"))
    assert unweighted_average_recall(chosen, truth) == pytest.approx(balanced_accuracy_score(truth, chosen))
    p, q = RNG.dirichlet(np.ones(9), 50), RNG.dirichlet(np.full(9, 0.1), 50)
    q[:, 0] = 0
    q /= q.sum(1, keepdims=True)
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(jensen_shannon(p, q), expected, atol=1e-12)


def test_no_class_is_a_wrong_answer_and_no_class_of_its_own():
    assert accuracy([-1, 0, 1, -1], [0, 0, 1, 1]) == 0.5
    assert unweighted_average_recall([-1, 0, 1, -1], [0, 0, 1, 1]) == 0.5
    assert macro_f1([-1, 0, 1, -1], [0, 0, 1, 1]) == pytest.approx(2 / 3)  # 2 tp / (2 tp + fn), without fp
    assert macro_f1([-1, -1], [0, 1]) == 0
    with pytest.raises(ValueError, match="those of truth at least 0"):
        accuracy([0, 1], [0, -1])
    with pytest.raises(ValueError, match="class numbers"):
        macro_f1(["a"], ["a"])


def test_divergence_is_symmetric_and_between_nothing_and_one_bit():
    p = np.eye(9)[:3]
    assert jensen_shannon(p, p).tolist() == [0, 0, 0]
    assert jensen_shannon(p, np.roll(p, 1, axis=0)).tolist() == [1, 1, 1]
    q = RNG.dirichlet(np.ones(9), 3)
    np.testing.assert_allclose(jensen_shannon(p, q), jensen_shannon(q, p))
    with pytest.raises(ValueError, match="sum 1"):
        jensen_shannon(p, q * 0.9)
    with pytest.raises(ValueError, match="shapes"):
        jensen_shannon(p, q[:2])


def test_ccc_punishes_shift_and_scale_where_pcc_does_not():
    assert ccc(X, X) == pytest.approx(1)
    assert ccc(-X, X) < 0
    assert pcc(3 * X + 1, X) == pytest.approx(1)
    assert ccc(X + 1, X) < 0.6
    assert ccc(3 * X, X) < 0.7


def test_a_constant_prediction_has_neither_concordance_nor_correlation():
    constant = np.full(200, 0.1)
    assert ccc(constant, Y) == pytest.approx(0, abs=1e-12)
    assert pcc(constant, Y) == 0
    assert rmse(np.full(200, Y.mean()), Y) == pytest.approx(Y.std())


@pytest.mark.parametrize("metric", [ccc, pcc, rmse])
def test_what_cannot_be_measured_is_an_error(metric):
    with pytest.raises(ValueError, match="finite"):
        metric([0.0, math.nan], [0.0, 1.0])
    with pytest.raises(ValueError, match="n > 0"):
        metric([], [])
    with pytest.raises(ValueError, match="shapes"):
        metric([0.0], [0.0, 1.0])


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=30), st.lists(st.floats(-1, 1), min_size=2, max_size=30)
)
def test_ccc_is_bounded_symmetric_and_never_above_pcc(x, y):
    size = min(len(x), len(y))
    x, y = np.round(x[:size], 3), np.round(y[:size], 3)
    value = ccc(x, y)
    assert -1 <= value <= 1 + 1e-12
    assert value == pytest.approx(ccc(y, x))
    if min(np.ptp(x), np.ptp(y)) > 1e-9:  # a deviation may round to more than 0
        assert abs(value) <= abs(pcc(x, y)) + 1e-9


def test_softmax_sums_to_one_and_survives_large_values():
    values = softmax([[1000.0, 1001.0], [-1000.0, -1000.0]])
    np.testing.assert_allclose(values, [[1 / (1 + math.e), math.e / (1 + math.e)], [0.5, 0.5]])


def test_bootstrap_interval_matches_theory_and_widens_when_rows_share_works():
    rows = RNG.normal(0, 1, 400)
    low, high = bootstrap_interval(lambda picked: float(rows[picked].mean()), range(400), seed=1)
    assert high - low == pytest.approx(2 * 1.96 * rows.std() / math.sqrt(400), rel=0.15)
    # The same rows four times over bring no new information. Over works the interval stays; over rows it
    # would halve.
    repeated, works = np.repeat(rows, 4), np.repeat(np.arange(400), 4).tolist()
    grouped = bootstrap_interval(lambda picked: float(repeated[picked].mean()), works, seed=1)
    assert grouped == pytest.approx((low, high), abs=1e-9)


def test_bootstrap_is_seeded():
    def interval(seed: int) -> tuple[float, float]:
        return bootstrap_interval(lambda picked: float(X[picked].mean()), range(200), resamples=50, seed=seed)

    assert interval(3) == interval(3)
    assert interval(3) != interval(4)
