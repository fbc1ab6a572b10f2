"""Values over time, and two series joined on one grid of times.

In: times and values. Out: pairs of values at the same times. Nothing is read before a series begins, after
it ends, or within a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaemotion.contract.windows import EPSILON_S

Array = npt.NDArray[np.float64]
LONGEST_GAP_S = 1.0


@dataclass(frozen=True)
class Series:
    """Values over time. ``time_s``: (n,) ascending; ``values``: (n,), finite; n > 0."""

    time_s: Array
    values: Array

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> Series:
        """Make a series of (time, value) pairs in any order; of several at one time, the last counts."""
        by_time = dict(points)
        times_s = sorted(by_time)
        return cls(np.array(times_s, np.float64), np.array([by_time[t] for t in times_s], np.float64))

    @property
    def longest_gap_s(self) -> float:
        """Longest time between two values that is interpolated: 1 s, or 1.5 times the usual step."""
        steps_s = np.diff(self.time_s)
        return max(LONGEST_GAP_S, 1.5 * float(np.median(steps_s))) if steps_s.size else LONGEST_GAP_S

    def at(self, times_s: Array) -> Array:
        """Interpolate linearly at times (m,). NaN outside the series and within a gap."""
        values = np.interp(times_s, self.time_s, self.values)
        after = np.searchsorted(self.time_s, times_s - EPSILON_S)  # the first value at or after each time
        before = np.searchsorted(self.time_s, times_s + EPSILON_S, side="right") - 1
        outside = (after == len(self.time_s)) | (before < 0)
        last = len(self.time_s) - 1
        apart_s = self.time_s[np.minimum(after, last)] - self.time_s[np.maximum(before, 0)]
        return np.where(outside | (apart_s > self.longest_gap_s + EPSILON_S), np.nan, values)


def grid_s(start_s: float, end_s: float, step_s: float) -> Array:
    """Return the multiples of ``step_s`` within [start, end], (n,)."""
    first, last = np.ceil(start_s / step_s - EPSILON_S), np.floor(end_s / step_s + EPSILON_S)
    return np.arange(first, last + 1) * step_s


@dataclass(frozen=True)
class Joined:
    """Predictions and labels at the same times, each (n,); n may be 0. A label may be a lag later."""

    time_s: Array
    predicted: Array
    truth: Array


def join(predicted: Series, labels: Series, step_s: float, lag_s: float = 0.0) -> Joined:
    """Join predictions with the labels ``lag_s`` later, on the multiples of ``step_s``."""
    times_s = grid_s(float(predicted.time_s[0]), float(predicted.time_s[-1]), step_s)
    values, truth = predicted.at(times_s), labels.at(times_s + lag_s)
    both = np.isfinite(values) & np.isfinite(truth)
    return Joined(times_s[both], values[both], truth[both])


def lags_s(most_s: float, step_s: float) -> Array:
    """Return the multiples of ``step_s`` from -most to +most, (n,), with 0."""
    return grid_s(-most_s, most_s, step_s)


def mean_series(raters: Sequence[Series]) -> Series:
    """Return the mean of the raters at every time that one of them answered, over those who cover it."""
    times_s = np.unique(np.concatenate([rater.time_s for rater in raters]))
    values = np.stack([rater.at(times_s) for rater in raters])  # (raters, n)
    return Series(times_s, np.nanmean(values, axis=0))
