"""What a benchmark run found: answers, and the figures made from them with bootstrap intervals over works.

In: answered items and affect readings. Out: `Report`. Figures stand per source and path: CCC over mixed sources
would measure how far the sources lie apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prediction import Affect
from vaemotion.data.item import Item
from vaemotion.evaluation.metrics import accuracy, bootstrap_interval, ccc, gaussian_nll, macro_f1, pcc, rmse

T = TypeVar("T")
Array = npt.NDArray[np.float64]
DIMENSIONS = ("valence", "arousal")


@dataclass(frozen=True)
class Answer:
    """An item's options with their mean token log-probabilities, and the likeliest of them."""

    item: Item
    log_probabilities: tuple[float, ...]

    @property
    def chosen_index(self) -> int:
        return int(np.argmax(self.log_probabilities))

    @property
    def chosen(self) -> str:
        return (self.item.options or ())[self.chosen_index]


@dataclass(frozen=True)
class Reading:
    """What the model feels in one medium on one path, beside the labels of ``item``."""

    item: Item
    affect: Affect


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over works."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ChoiceResult:
    """Multiple choice over unlisted options. ``chance``: accuracy of guessing."""

    source: str
    task: str
    path: str
    items: int
    works: int
    accuracy: Estimate
    chance: float
    macro_f1: float


@dataclass(frozen=True)
class AffectResult:
    """Agreement on one dimension. ``mean_rmse``: RMSE of a predictor that always says the mean of this truth (its CCC
    and PCC are 0): the best that a constant can do. ``nll``: Gaussian, in nats; ``mean_sd``: mean predicted spread."""

    source: str
    path: str
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
class Report:
    """``left_out``: items, by reason, that no figure counts."""

    choices: tuple[ChoiceResult, ...]
    affects: tuple[AffectResult, ...]
    answers: tuple[Answer, ...]
    readings: tuple[Reading, ...]
    left_out: dict[str, int]
    bootstrap: int
    seed: int
    wall_s: float


def choice_results(answers: Sequence[Answer], bootstrap: int, seed: int) -> tuple[ChoiceResult, ...]:
    """One row per source, task and path."""
    grouped = _grouped(answers, lambda answer: (answer.item.source, answer.item.task, answer.item.modality))
    return tuple(_choice_result(rows, bootstrap, seed) for rows in grouped)


def _choice_result(rows: Sequence[Answer], bootstrap: int, seed: int) -> ChoiceResult:
    right = np.array([row.chosen_index == row.item.answer_index for row in rows], np.float64)
    truth = [(row.item.options or ())[row.item.answer_index or 0] for row in rows]
    chosen = [row.chosen for row in rows]
    works = [row.item.work_id for row in rows]
    low, high = bootstrap_interval(
        lambda picked: float(right[picked].mean()), works, resamples=bootstrap, seed=seed
    )
    return ChoiceResult(
        source=rows[0].item.source,
        task=rows[0].item.task,
        path=rows[0].item.modality,
        items=len(rows),
        works=len(set(works)),
        accuracy=Estimate(accuracy(chosen, truth), low, high),
        chance=float(np.mean([1 / len(row.item.options or ()) for row in rows])),
        macro_f1=macro_f1(chosen, truth),
    )


def affect_results(readings: Sequence[Reading], bootstrap: int, seed: int) -> tuple[AffectResult, ...]:
    """One row per source, path and dimension that has labels."""
    results: list[AffectResult] = []
    for rows in _grouped(readings, lambda reading: (reading.item.source, "", reading.item.modality)):
        for dimension in DIMENSIONS:
            labelled = [row for row in rows if getattr(row.item, dimension) is not None]
            if labelled:
                results.append(_affect_result(labelled, dimension, bootstrap, seed))
    return tuple(results)


def _affect_result(rows: Sequence[Reading], dimension: str, bootstrap: int, seed: int) -> AffectResult:
    predicted = np.array([getattr(row.affect, dimension) for row in rows], np.float64)
    deviation = np.array([getattr(row.affect, f"{dimension}_sd") for row in rows], np.float64)
    truth = np.array([getattr(row.item, dimension) for row in rows], np.float64)
    works = [row.item.work_id for row in rows]

    def estimate(metric: Callable[[Array, Array], float]) -> Estimate:
        low, high = bootstrap_interval(
            lambda picked: metric(predicted[picked], truth[picked]), works, resamples=bootstrap, seed=seed
        )
        return Estimate(metric(predicted, truth), low, high)

    return AffectResult(
        source=rows[0].item.source,
        path=rows[0].item.modality,
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


def _grouped(rows: Sequence[T], key: Callable[[T], tuple[str, str, str]]) -> list[list[T]]:
    """Rows by (source, task, path): sorted by the first two, paths in their own order."""
    groups: dict[tuple[str, str, int], list[T]] = {}
    for row in rows:
        source, task, path = key(row)
        groups.setdefault((source, task, PATHS.index(path)), []).append(row)
    return [groups[name] for name in sorted(groups)]
