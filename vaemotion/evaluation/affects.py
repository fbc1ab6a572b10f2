"""Valence, arousal and emotion distributions against labels, each construct by itself.

In: readings. Out: agreement per source, construct and path; what both modalities together add to the better one; how far the
predicted distributions lie from the labels'. CCC over mixed sources would measure how far the sources lie apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vaemotion.contract.front_end import PATHS
from vaemotion.evaluation.metrics import ccc, gaussian_nll, jensen_shannon, pcc, rmse
from vaemotion.evaluation.rows import (
    DIMENSIONS,
    Array,
    Bootstrap,
    Estimate,
    Picked,
    Reading,
    grouped,
    path_order,
)

MediumKey = tuple[str | float | None, ...]


@dataclass(frozen=True)
class AffectResult:
    """Agreement on one dimension of one construct. ``path``: read on; ``own_path``: the labels' own. ``mean_rmse``: RMSE of a
    predictor that always says the mean of this truth (its CCC and PCC are 0): the best that a constant can do.
    ``nll``: Gaussian, in nats; ``mean_sd``: mean predicted spread."""

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
    """What both modalities add to the better one: ``gain`` = CCC(audio-visual) − max(CCC(audio), CCC(visual)) on the same media.
    Each resample takes its own best single path, which can only lower the gain. ``best_single``: the path that is best on
    all of them."""

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
    """Mean Jensen-Shannon divergence (bits, 0 to 1) to the labels' distributions: of the model, of a predictor that always says
    the uniform distribution, and of one that always says the mean of these labels. ``mean_raters``: people behind a
    label; None where no people were asked."""

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


def affect_results(readings: Sequence[Reading], bootstrap: Bootstrap) -> tuple[AffectResult, ...]:
    """One row per source, construct, path and dimension that has labels."""
    results: list[AffectResult] = []
    for rows in _by_path(readings):
        for dimension in DIMENSIONS:
            labelled = [row for row in rows if getattr(row.item, dimension) is not None]
            if labelled:
                results.append(_affect_result(labelled, dimension, bootstrap))
    return tuple(results)


def _by_path(readings: Sequence[Reading]) -> list[list[Reading]]:
    return grouped(
        readings, lambda r: (r.item.source, str(r.item.construct), *path_order(r.path, r.item.modality))
    )


def _values(rows: Sequence[Reading], dimension: str) -> tuple[Array, Array]:
    """Predictions and labels, (n,) each."""
    predicted = np.array([getattr(row.affect, dimension) for row in rows], np.float64)
    return predicted, np.array([getattr(row.item, dimension) for row in rows], np.float64)


def _affect_result(rows: Sequence[Reading], dimension: str, bootstrap: Bootstrap) -> AffectResult:
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


def gain_results(readings: Sequence[Reading], bootstrap: Bootstrap) -> tuple[GainResult, ...]:
    """One row per source, construct and dimension with media that were read, and labelled, on all three paths."""
    results: list[GainResult] = []
    own = [row for row in readings if row.path == row.item.modality]
    for rows in grouped(own, lambda r: (r.item.source, str(r.item.construct))):
        for dimension in DIMENSIONS:
            if on_all_paths := _on_all_paths(rows, dimension):
                results.append(_gain_result(on_all_paths, dimension, bootstrap))
    return tuple(results)


def _on_all_paths(rows: Sequence[Reading], dimension: str) -> list[list[Reading]]:
    """For each medium that has all three paths, its readings in the order of ``PATHS``."""
    found: dict[MediumKey, dict[str, Reading]] = {}
    for row in rows:
        if getattr(row.item, dimension) is not None:
            item = row.item
            key = (item.video, item.image, item.audio, item.t0, item.t1)
            found.setdefault(key, {})[row.path] = row
    return [[by_path[path] for path in PATHS] for by_path in found.values() if len(by_path) == len(PATHS)]


def _gain_result(rows: Sequence[Sequence[Reading]], dimension: str, bootstrap: Bootstrap) -> GainResult:
    pairs = {path: _values([row[k] for row in rows], dimension) for k, path in enumerate(PATHS)}

    def scores(picked: Picked) -> dict[str, float]:
        return {path: ccc(predicted[picked], truth[picked]) for path, (predicted, truth) in pairs.items()}

    def gain(picked: Picked) -> float:
        score = scores(picked)
        return score["audio-visual"] - max(score["audio"], score["visual"])

    everything = scores(np.arange(len(rows)))
    best = max(("audio", "visual"), key=lambda path: everything[path])
    works = [row[0].item.work_id for row in rows]
    first = rows[0][0].item
    return GainResult(
        source=first.source,
        construct=str(first.construct),
        dimension=dimension,
        media=len(rows),
        works=len(set(works)),
        best_single=best,
        best_single_ccc=everything[best],
        audio_visual_ccc=everything["audio-visual"],
        gain=bootstrap.estimate(gain, works),
    )


def distribution_results(readings: Sequence[Reading], bootstrap: Bootstrap) -> tuple[DistributionResult, ...]:
    """One row per source, construct and path that has distributions over the emotions."""
    labelled = [row for row in readings if row.item.emotion_distribution is not None]
    return tuple(_distribution_result(rows, bootstrap) for rows in _by_path(labelled))


def _distribution_result(rows: Sequence[Reading], bootstrap: Bootstrap) -> DistributionResult:
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
