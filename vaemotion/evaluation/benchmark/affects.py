"""Valence, arousal and emotion distributions against labels, separately for each construct.

In: affect rows. Out: per source, construct and path the agreement with the labels, the gain of both
modalities over the better one, and the divergence of the predicted distributions from the labels'. Sources
are not pooled: CCC over several of them would measure how much the sources differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vaemotion.contract.front_end import PATHS
from vaemotion.evaluation.benchmark.rows import (
    DIMENSIONS,
    AffectRow,
    Array,
    Bootstrap,
    Estimate,
    MediumKey,
    Picked,
    grouped,
    medium_key,
    path_order,
)
from vaemotion.evaluation.metrics import ccc, gaussian_nll, jensen_shannon, pcc, rmse


@dataclass(frozen=True)
class AffectResult:
    """Agreement with the labels of one dimension (valence or arousal) of one construct.

    ``path``: the path that was predicted on; ``own_path``: the path that the labels are for. ``mean_rmse``:
    RMSE of the mean predictor, which always predicts the mean of these labels: the lowest RMSE of a constant
    (its CCC and PCC are 0). ``nll``: mean Gaussian negative log-likelihood, in nats. ``mean_sd``: mean
    predicted standard deviation.
    """

    source: str
    construct: str
    path: str
    own_path: str
    dimension: str
    readings: int
    works: int
    ccc: Estimate
    pcc: Estimate
    rmse: Estimate
    mean_rmse: float
    nll: float
    mean_sd: float


@dataclass(frozen=True)
class GainResult:
    """The gain of both modalities over the better single one, on the same media.

    ``gain`` = CCC(audio-visual) − max(CCC(audio), CCC(visual)). Each bootstrap resample takes its own best
    single path, which can only lower the gain. ``best_single``: the path with the higher CCC over all media.
    """

    source: str
    construct: str
    dimension: str
    media: int
    works: int
    best_single: str
    best_single_ccc: float
    audio_visual_ccc: float
    gain: Estimate


@dataclass(frozen=True)
class DistributionResult:
    """Mean Jensen-Shannon divergence from the labels' emotion distributions, in bits (0 to 1).

    ``jsd``: of the model; ``uniform_jsd``: of a predictor of the uniform distribution; ``mean_jsd``: of a
    predictor of the mean of these labels. ``mean_raters``: mean number of raters per label; None for computed
    labels.
    """

    source: str
    construct: str
    path: str
    own_path: str
    readings: int
    works: int
    mean_raters: float | None
    jsd: Estimate
    uniform_jsd: Estimate
    mean_jsd: Estimate


def affect_results(readings: Sequence[AffectRow], bootstrap: Bootstrap) -> tuple[AffectResult, ...]:
    """Compute one result per source, construct, path and dimension that has labels."""
    results: list[AffectResult] = []
    for rows in _by_path(readings):
        for dimension in DIMENSIONS:
            labeled = [row for row in rows if getattr(row.item, dimension) is not None]
            if labeled:
                results.append(_affect_result(labeled, dimension, bootstrap))
    return tuple(results)


def _by_path(readings: Sequence[AffectRow]) -> list[list[AffectRow]]:
    return grouped(
        readings, lambda r: (r.item.source, str(r.item.construct), *path_order(r.path, r.item.modality))
    )


def _values(rows: Sequence[AffectRow], dimension: str) -> tuple[Array, Array]:
    """Return predictions and labels, (n,) each."""
    predicted = np.array([getattr(row.affect, dimension) for row in rows], np.float64)
    return predicted, np.array([getattr(row.item, dimension) for row in rows], np.float64)


def _affect_result(rows: Sequence[AffectRow], dimension: str, bootstrap: Bootstrap) -> AffectResult:
    predicted, truth = _values(rows, dimension)
    deviation = np.array([getattr(row.affect, f"{dimension}_sd") for row in rows], np.float64)
    works = [row.item.work_id for row in rows]

    def estimate(metric: Callable[[Array, Array], float]) -> Estimate:
        return bootstrap.estimate(lambda picked: metric(predicted[picked], truth[picked]), works)

    return AffectResult(
        source=rows[0].item.source,
        construct=str(rows[0].item.construct),
        path=rows[0].path,
        own_path=rows[0].item.modality,
        dimension=dimension,
        readings=len(rows),
        works=len(set(works)),
        ccc=estimate(ccc),
        pcc=estimate(pcc),
        rmse=estimate(rmse),
        mean_rmse=float(truth.std()),
        nll=gaussian_nll(predicted, deviation, truth),
        mean_sd=float(deviation.mean()),
    )


def gain_results(readings: Sequence[AffectRow], bootstrap: Bootstrap) -> tuple[GainResult, ...]:
    """Compute one result per source, construct and dimension.

    Only media with a prediction and a label on all three paths count.
    """
    results: list[GainResult] = []
    own = [row for row in readings if row.path == row.item.modality]
    for rows in grouped(own, lambda r: (r.item.source, str(r.item.construct))):
        for dimension in DIMENSIONS:
            if on_all_paths := _on_all_paths(rows, dimension):
                results.append(_gain_result(on_all_paths, dimension, bootstrap))
    return tuple(results)


def _on_all_paths(rows: Sequence[AffectRow], dimension: str) -> list[list[AffectRow]]:
    """Return the rows of each medium that has all three paths, in the order of ``PATHS``."""
    found: dict[MediumKey, dict[str, AffectRow]] = {}
    for row in rows:
        if getattr(row.item, dimension) is not None:
            found.setdefault(medium_key(row.item), {})[row.path] = row
    return [[by_path[path] for path in PATHS] for by_path in found.values() if len(by_path) == len(PATHS)]


def _gain_result(rows: Sequence[Sequence[AffectRow]], dimension: str, bootstrap: Bootstrap) -> GainResult:
    pairs = {path: _values([row[k] for row in rows], dimension) for k, path in enumerate(PATHS)}

    def scores(picked: Picked) -> dict[str, float]:
        return {path: ccc(predicted[picked], truth[picked]) for path, (predicted, truth) in pairs.items()}

    def gain(picked: Picked) -> float:
        score = scores(picked)
        return score["audio-visual"] - max(score["audio"], score["visual"])

    over_all = scores(np.arange(len(rows)))
    best = max(("audio", "visual"), key=lambda path: over_all[path])
    works = [row[0].item.work_id for row in rows]
    first = rows[0][0].item
    return GainResult(
        source=first.source,
        construct=str(first.construct),
        dimension=dimension,
        media=len(rows),
        works=len(set(works)),
        best_single=best,
        best_single_ccc=over_all[best],
        audio_visual_ccc=over_all["audio-visual"],
        gain=bootstrap.estimate(gain, works),
    )


def distribution_results(
    readings: Sequence[AffectRow], bootstrap: Bootstrap
) -> tuple[DistributionResult, ...]:
    """Compute one result per source, construct and path that has labels of emotion distributions."""
    labeled = [row for row in readings if row.item.emotion_distribution is not None]
    return tuple(_distribution_result(rows, bootstrap) for rows in _by_path(labeled))


def _distribution_result(rows: Sequence[AffectRow], bootstrap: Bootstrap) -> DistributionResult:
    predicted = np.array([row.affect.emotions for row in rows], np.float64)  # (n, 9)
    truth = np.array([row.item.emotion_distribution for row in rows], np.float64)  # (n, 9)
    uniform = np.full_like(truth, 1 / truth.shape[1])
    mean = np.broadcast_to(truth.mean(0), truth.shape)
    works = [row.item.work_id for row in rows]
    raters = [row.item.n_raters for row in rows if row.item.n_raters is not None]
    return DistributionResult(
        source=rows[0].item.source,
        construct=str(rows[0].item.construct),
        path=rows[0].path,
        own_path=rows[0].item.modality,
        readings=len(rows),
        works=len(set(works)),
        mean_raters=float(np.mean(raters)) if raters else None,
        jsd=bootstrap.mean(jensen_shannon(predicted, truth), works),
        uniform_jsd=bootstrap.mean(jensen_shannon(uniform, truth), works),
        mean_jsd=bootstrap.mean(jensen_shannon(mean, truth), works),
    )
