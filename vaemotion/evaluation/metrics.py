"""Measures of agreement between predictions and truth, in NumPy.

In: arrays of predictions and of truth, (n,). Out: numbers. Every measure raises ValueError for arrays of
different lengths, for empty arrays, and for values that are not finite: a NaN that became 0 would flatter a
model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from vaemotion.contract import concordance

Numbers = npt.ArrayLike
Array = npt.NDArray[np.float64]


def _pair(predicted: Numbers, truth: Numbers) -> tuple[Array, Array]:
    a, b = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"predicted and truth must be (n,) with n > 0, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("predicted and truth must be finite")
    return a, b


def ccc(predicted: Numbers, truth: Numbers) -> float:
    """Return the concordance correlation coefficient of two arrays (n,), in [-1, 1].

    Equation and source: ``vaemotion.contract.concordance``.
    """
    return concordance.ccc(*_pair(predicted, truth))


def pcc(predicted: Numbers, truth: Numbers) -> float:
    """Return Pearson's correlation coefficient of two arrays (n,), in [-1, 1].

    It is 0 where either array is constant, up to rounding.
    """
    a, b = _pair(predicted, truth)
    if _is_constant(a) or _is_constant(b):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def _is_constant(values: Array) -> bool:
    return float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max()))


def rmse(predicted: Numbers, truth: Numbers) -> float:
    """Return the root of the mean squared error of two arrays (n,)."""
    a, b = _pair(predicted, truth)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def gaussian_nll(predicted: Numbers, deviation: Numbers, truth: Numbers) -> float:
    """Return the mean negative log-likelihood of the truth under N(predicted, deviation²), in nats.

    All are (n,). Raises ValueError for a deviation that is not above 0.
    """
    mean, sd = _pair(predicted, deviation)
    mean, b = _pair(mean, truth)
    if (sd <= 0).any():
        raise ValueError(f"deviation must be above 0, got {sd.min()}")
    return float(np.mean(0.5 * np.log(2 * np.pi * sd**2) + (b - mean) ** 2 / (2 * sd**2)))


def accuracy(chosen: Numbers, truth: Numbers) -> float:
    """Return the share of equal entries of two arrays of class numbers, (n,).

    A number below 0 in ``chosen`` stands for no class and counts as wrong.
    """
    a, b = _classes(chosen, truth)
    return float((a == b).mean())


def macro_f1(chosen: Numbers, truth: Numbers) -> float:
    """Return the unweighted mean of the F1 of every class that occurs in ``truth`` or in ``chosen``.

    In: class numbers, (n,); one below 0 in ``chosen`` stands for no class and counts as wrong.
    F1 = 2 tp / (2 tp + fp + fn).
    """
    a, b = _classes(chosen, truth)
    n = int(max(a.max(), b.max())) + 1
    hits = np.bincount(b[a == b], minlength=n)
    named = np.bincount(a[a >= 0], minlength=n) + np.bincount(b, minlength=n)  # 2 tp + fp + fn
    occurs = named > 0
    return float((2 * hits[occurs] / named[occurs]).mean())


def unweighted_average_recall(chosen: Numbers, truth: Numbers) -> float:
    """Return the mean recall over the classes in ``truth`` (UAR, also called balanced accuracy).

    In: class numbers as in `macro_f1`.
    """
    a, b = _classes(chosen, truth)
    n = int(max(a.max(), b.max())) + 1
    hits, there = np.bincount(b[a == b], minlength=n), np.bincount(b, minlength=n)
    return float((hits[there > 0] / there[there > 0]).mean())


def _classes(chosen: Numbers, truth: Numbers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    a, b = np.asarray(chosen), np.asarray(truth)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"chosen and truth must be (n,) with n > 0, got shapes {a.shape} and {b.shape}")
    if a.dtype.kind not in "iu" or b.dtype.kind not in "iu" or b.min() < 0:
        raise ValueError("chosen and truth must be class numbers, those of truth at least 0")
    return a.astype(np.int64), b.astype(np.int64)


def jensen_shannon(p: Numbers, q: Numbers) -> Array:
    """Return the Jensen-Shannon divergence to base 2 of each pair of rows, (n,), in [0, 1].

    In: one distribution per row, (n, k) each. Raises ValueError for rows that do not sum to 1. Source: Lin
    1991, IEEE Trans. Inf. Theory 37:145, eq. 4.1.
    """
    a, b = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ValueError(f"p and q must be (n, k) with n > 0, got shapes {a.shape} and {b.shape}")
    for rows in (a, b):
        if not ((rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=2e-3)):
            raise ValueError("p and q must hold distributions: at least 0, each row with the sum 1")
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    middle = (a + b) / 2
    return np.clip((_divergence(a, middle) + _divergence(b, middle)) / 2, 0, 1)


def _divergence(p: Array, q: Array) -> Array:
    """Return the Kullback-Leibler divergence of each row in bits, (n,); terms where p is 0 are 0."""
    positive = p > 0
    ratio = np.log2(np.where(positive, p, 1)) - np.log2(np.where(positive, q, 1))
    return (p * ratio).sum(1)


def softmax(logits: npt.ArrayLike, axis: int = -1) -> Array:
    """Return exp(x) / Σ exp(x) along ``axis``, without overflow for large values."""
    values = np.asarray(logits, np.float64)
    weights = np.exp(values - values.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.intp]], float],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
    coverage: float = 0.95,
) -> tuple[float, float]:
    """Return (low, high), the percentile bootstrap interval of a statistic, resampling whole groups.

    groups: the work that each row belongs to, (n,); rows of one work are not independent. statistic: a
    function of the row numbers of a resample. Source: Efron & Tibshirani 1993, ch. 13.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    members = [np.array(rows, np.intp) for rows in rows_of.values()]
    if not members or resamples < 1:
        raise ValueError(
            f"bootstrap needs rows and resamples, got {len(members)} groups and {resamples} resamples"
        )
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for resample in range(resamples):
        picked = rng.integers(len(members), size=len(members))
        values[resample] = statistic(np.concatenate([members[group] for group in picked]))
    tail = (1 - coverage) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
