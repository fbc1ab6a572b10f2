"""The concordance correlation coefficient (CCC) of predictions with labels, in NumPy.

Source: Lin 1989, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45:255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def ccc(predicted: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Return the CCC of two arrays (n,), in [-1, 1]; NaN where a value is NaN."""
    return float(weighted_ccc(predicted, truth, np.ones((1, len(truth))))[0])


def weighted_ccc(predicted: npt.NDArray[Any], truth: npt.NDArray[Any], weights: npt.NDArray[Any]) -> Float64:
    """Return the CCC of n pairs under each row of weights, (R,). predicted, truth: (n,); weights: (R, n).

    2 s_xy / (s_x² + s_y² + (m_x − m_y)²) with 1/n moments. Whole numbers count repetitions of a pair, as
    in a bootstrap. Two equal constants have 1; any other constant has 0.
    """
    shares = weights / weights.sum(axis=1, keepdims=True)  # (R, n)
    p, t = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    center_p, center_t = float(p.mean()), float(t.mean())
    p, t = p - center_p, t - center_t  # (n,): around 0 the differences below lose fewer digits
    mean_p, mean_t = shares @ p, shares @ t  # (R,)
    covariance = shares @ (p * t) - mean_p * mean_t
    variances = shares @ p**2 - mean_p**2 + shares @ t**2 - mean_t**2
    spread = variances + (mean_p + center_p - mean_t - center_t) ** 2
    return np.where(spread == 0, 1.0, 2 * covariance / np.where(spread == 0, 1.0, spread))
