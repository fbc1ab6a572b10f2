"""Measures of agreement, in NumPy. In: arrays of predictions and of truth, (n,). Out: numbers.

Arrays of different lengths and empty ones are a ValueError; so are values that are not finite, because a NaN that
becomes a 0 somewhere flatters a model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

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
    """Concordance correlation coefficient, in [-1, 1] (Lin 1989, Biometrics 45:255, with 1/n moments):
    2 s_xy / (s_x² + s_y² + (m_x − m_y)²). Two equal constants agree perfectly (1); otherwise a constant has 0."""
    a, b = _pair(predicted, truth)
    covariance = np.mean((a - a.mean()) * (b - b.mean()))
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return 1.0 if spread == 0 else float(2 * covariance / spread)


def pcc(predicted: Numbers, truth: Numbers) -> float:
    """Pearson's correlation coefficient, in [-1, 1]; 0 where either is constant (to rounding), as a constant tells nothing."""
    a, b = _pair(predicted, truth)
    if _is_constant(a) or _is_constant(b):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def _is_constant(values: Array) -> bool:
    return float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max()))


def rmse(predicted: Numbers, truth: Numbers) -> float:
    """Root of the mean squared error."""
    a, b = _pair(predicted, truth)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def gaussian_nll(predicted: Numbers, deviation: Numbers, truth: Numbers) -> float:
    """Mean negative log-likelihood of the truth under N(predicted, deviation²), in nats. deviation: (n,), above 0."""
    mean, sd = _pair(predicted, deviation)
    mean, b = _pair(mean, truth)
    if (sd <= 0).any():
        raise ValueError(f"deviation must be above 0, got {sd.min()}")
    return float(np.mean(0.5 * np.log(2 * np.pi * sd**2) + (b - mean) ** 2 / (2 * sd**2)))


def accuracy(chosen: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Share of equal entries."""
    _same_length(chosen, truth)
    return sum(a == b for a, b in zip(chosen, truth, strict=True)) / len(truth)


def macro_f1(chosen: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Unweighted mean of the F1 of every class that occurs in ``truth`` or was chosen; each is 2 tp / (2 tp + fp + fn)."""
    _same_length(chosen, truth)
    scores: list[float] = []
    for name in {*chosen, *truth}:
        hits = sum(a == name == b for a, b in zip(chosen, truth, strict=True))
        named = sum(a == name for a in chosen) + sum(b == name for b in truth)  # 2 tp + fp + fn
        scores.append(2 * hits / named)
    return float(np.mean(scores))


def _same_length(chosen: Sequence[Hashable], truth: Sequence[Hashable]) -> None:
    if len(chosen) != len(truth) or not truth:
        raise ValueError(f"chosen and truth must have one length above 0, got {len(chosen)} and {len(truth)}")


def softmax(logits: npt.ArrayLike, axis: int = -1) -> Array:
    """exp(x) / Σ exp(x) along ``axis``, safe for large values."""
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
    """Percentile bootstrap interval of a statistic (Efron & Tibshirani 1993, ch. 13) that resamples whole groups.

    groups: for each row the work that it belongs to, (n,): rows of one work are not independent. statistic: takes
    the row numbers of a resample. Returns (low, high).
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
