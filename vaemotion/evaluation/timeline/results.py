"""Agreement of readings with labels over time, per work and pooled.

In: tracks of readings, each with the labels of its work. Out: `TimelineResult`s. Pooled figures are taken of
all works' pairs together, so they also count how much the works differ from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vaemotion.evaluation.benchmark.rows import DIMENSIONS, Bootstrap, Estimate, time_blocks
from vaemotion.evaluation.metrics import ccc, pcc, rmse
from vaemotion.evaluation.timeline.labels import WorkLabels
from vaemotion.evaluation.timeline.series import Array, Joined, Series, join, lags_s

FEWEST_POINTS = 10  # joined, of a work and dimension


@dataclass(frozen=True)
class Track:
    """The readings of one timeline.

    ``readings``: series by dimension. ``bands``: half the width of the interval around each reading, by
    dimension. ``calibrated``: it is the bundle's 90 % interval; otherwise one predicted standard deviation.
    ``path``: the one that most readings have, ``path_share`` of them.
    """

    work: str
    readings: dict[str, Series]
    bands: dict[str, Series]
    calibrated: bool
    path: str
    path_share: float


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison.

    ``step_s``: of the common grid of times, and of the lags tried. ``most_lag_s``: the largest of them, to
    either side. ``reaction_lag_s``: what the raters answered late, taken off the labels' times beforehand.
    """

    step_s: float = 0.5
    most_lag_s: float = 10.0
    reaction_lag_s: float = 0.0
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


@dataclass(frozen=True)
class AtLag:
    """Figures with every label taken ``lag_s`` after its reading (before it, where negative)."""

    lag_s: float
    points: int
    ccc: float
    pcc: float
    rmse: float


@dataclass(frozen=True)
class TimelineResult:
    """Agreement of one dimension (valence or arousal) of a work, or of all works (``work`` is None).

    ``points``: pairs on the grid at lag 0, which cover ``shared_s``. ``mean_rmse``: RMSE of the mean
    predictor, which always gives the mean of these labels. ``best``: the lag with the highest CCC. It is
    chosen by the labels themselves. ``lags``: (lag, CCC) of all that were tried. ``ceiling_ccc``: mean CCC of
    one rater with the mean of the others at the same times; None with fewer than two raters. ``coverage``:
    share of the labels inside the readings' 90 % intervals; None without calibration. Pooled intervals are
    resampled over works, those of one work over ``time_blocks``.
    """

    work: str | None
    dimension: str
    construct: str
    path: str
    works: int
    points: int
    shared_s: float
    ccc: Estimate
    pcc: Estimate
    rmse: Estimate
    mean_rmse: float
    best: AtLag
    lags: tuple[tuple[float, float], ...]
    raters: int
    ceiling_ccc: float | None
    coverage: float | None


@dataclass(frozen=True)
class WorkPair:
    """A track and the labels of its work."""

    track: Track
    labels: WorkLabels

    def joined(self, dimension: str, settings: Settings, lag_s: float = 0.0) -> Joined:
        """Join readings and labels of one dimension; empty where the labels lack it."""
        labels = self.labels.labels.get(dimension)
        if labels is None:
            return Joined(np.zeros(0), np.zeros(0), np.zeros(0))
        return join(self.track.readings[dimension], labels, settings.step_s, lag_s + settings.reaction_lag_s)


def timeline_results(pairs: Sequence[WorkPair], settings: Settings) -> tuple[TimelineResult, ...]:
    """Compute one result per work and dimension, and with several works one pooled result per dimension.

    A work and dimension with fewer than ``FEWEST_POINTS`` common times has none.
    """
    results: list[TimelineResult] = []
    for dimension in DIMENSIONS:
        enough = [p for p in pairs if len(p.joined(dimension, settings).time_s) >= FEWEST_POINTS]
        if len(enough) > 1:
            results.append(_result(enough, dimension, settings))
        results += [_result([pair], dimension, settings) for pair in enough]
    return tuple(sorted(results, key=lambda result: result.work is not None))


def _result(pairs: Sequence[WorkPair], dimension: str, settings: Settings) -> TimelineResult:
    joined = [pair.joined(dimension, settings) for pair in pairs]
    predicted, truth = _together(joined)
    # By position, so that a gap does not leave a block nearly empty.
    works = [str(work) for work, at in enumerate(joined) for _ in at.time_s]
    groups = works if len(pairs) > 1 else time_blocks(len(truth), settings.step_s)

    def estimate(metric: Callable[[Array, Array], float]) -> Estimate:
        return settings.bootstrap.estimate(lambda picked: metric(predicted[picked], truth[picked]), groups)

    tried = [
        found
        for lag_s in lags_s(settings.most_lag_s, settings.step_s)
        if (found := _at_lag(pairs, dimension, settings, float(lag_s))).points >= len(truth) / 2
    ]
    raters, ceiling_ccc = _ceiling(pairs, joined, dimension, settings)
    constructs, paths = {pair.labels.construct for pair in pairs}, {pair.track.path for pair in pairs}
    return TimelineResult(
        work=pairs[0].track.work if len(pairs) == 1 else None,
        dimension=dimension,
        construct=constructs.pop() if len(constructs) == 1 else "several",
        path=paths.pop() if len(paths) == 1 else "several",
        works=len(pairs),
        points=len(truth),
        shared_s=len(truth) * settings.step_s,
        ccc=estimate(ccc),
        pcc=estimate(pcc),
        rmse=estimate(rmse),
        mean_rmse=float(truth.std()),
        # Of equal lags the shortest.
        best=max(tried, key=lambda found: (found.ccc, -abs(found.lag_s))),
        lags=tuple((found.lag_s, found.ccc) for found in tried),
        raters=raters,
        ceiling_ccc=ceiling_ccc,
        coverage=_coverage(pairs, joined, dimension),
    )


def _together(joined: Sequence[Joined]) -> tuple[Array, Array]:
    return np.concatenate([j.predicted for j in joined]), np.concatenate([j.truth for j in joined])


def _at_lag(pairs: Sequence[WorkPair], dimension: str, settings: Settings, lag_s: float) -> AtLag:
    predicted, truth = _together([pair.joined(dimension, settings, lag_s) for pair in pairs])
    if not len(truth):
        return AtLag(lag_s, 0, 0.0, 0.0, 0.0)
    return AtLag(lag_s, len(truth), ccc(predicted, truth), pcc(predicted, truth), rmse(predicted, truth))


def _ceiling(
    pairs: Sequence[WorkPair], joined: Sequence[Joined], dimension: str, settings: Settings
) -> tuple[int, float | None]:
    """Return the number of raters, and the mean CCC of each with the mean of the others.

    Both are taken at the times at which the model was measured. A rater's values of all works stand together.
    """
    alone: dict[str, list[tuple[Array, Array]]] = {}  # rater → per work: own values, mean of the others
    for pair, at in zip(pairs, joined, strict=True):
        raters = pair.labels.raters.get(dimension, {})
        if len(raters) < 2:
            continue
        times_s = at.time_s + settings.reaction_lag_s
        values = np.stack([rater.at(times_s) for rater in raters.values()])  # (raters, n)
        present = np.isfinite(values)
        for row, name in enumerate(raters):
            others = present.copy()
            others[row] = False
            both = present[row] & others.any(axis=0)
            total = np.where(others, values, 0.0).sum(axis=0)[both]
            alone.setdefault(name, []).append((values[row, both], total / others.sum(axis=0)[both]))
    scores: list[float] = []
    for own_and_others in alone.values():
        own, others = (np.concatenate(parts) for parts in zip(*own_and_others, strict=True))
        if len(own) >= FEWEST_POINTS:
            scores.append(ccc(own, others))
    return len(scores), float(np.mean(scores)) if scores else None


def _coverage(pairs: Sequence[WorkPair], joined: Sequence[Joined], dimension: str) -> float | None:
    """Return the share of labels inside the readings' intervals; None unless all of them are calibrated."""
    if not all(pair.track.calibrated for pair in pairs):
        return None
    inside = [
        np.abs(at.truth - at.predicted) <= pair.track.bands[dimension].at(at.time_s)
        for pair, at in zip(pairs, joined, strict=True)
    ]
    return float(np.concatenate(inside).mean())


@dataclass(frozen=True)
class TimelineReport:
    """The results of a comparison, with the pairs that they are computed from.

    ``without_timeline``: works with labels only. ``bundles``: those that made the timelines, name and
    SHA-256. ``labels``, ``labels_sha256``: the file of the labels.
    """

    results: tuple[TimelineResult, ...]
    pairs: tuple[WorkPair, ...]
    without_timeline: tuple[str, ...]
    bundles: tuple[str, ...]
    labels: str
    labels_sha256: str
    settings: Settings
