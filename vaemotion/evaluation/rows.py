"""What single answers and readings are, and how figures are made of many: by source and path, with intervals over works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prediction import Affect
from vaemotion.data.item import Item
from vaemotion.evaluation.metrics import bootstrap_interval

T = TypeVar("T")
Array = npt.NDArray[np.float64]
Picked = npt.NDArray[np.intp]
DIMENSIONS = ("valence", "arousal")


@dataclass(frozen=True)
class Answer:
    """An item's options with their mean token log-probabilities, and the likeliest of them. ``path``: the one that it was asked
    on. ``written``: one greedy answer per rotation of the listed options."""

    item: Item
    path: str
    log_probabilities: tuple[float, ...]
    written: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        return self.item.options or ()

    @property
    def right_index(self) -> int:
        return self.item.answer_index or 0

    @property
    def chosen_index(self) -> int:
        return int(np.argmax(self.log_probabilities))

    @property
    def chosen(self) -> str:
        return self.options[self.chosen_index]


@dataclass(frozen=True)
class Reading:
    """What the model feels in one medium on one path, of the construct that the labels of ``item`` are about."""

    item: Item
    path: str
    affect: Affect


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over works."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    resamples: int
    seed: int

    def estimate(self, statistic: Callable[[Picked], float], works: Sequence[str]) -> Estimate:
        """``statistic`` takes row numbers; ``works``: the work of each row."""
        low, high = bootstrap_interval(statistic, works, resamples=self.resamples, seed=self.seed)
        return Estimate(statistic(np.arange(len(works))), low, high)

    def mean(self, values: Array, works: Sequence[str]) -> Estimate:
        """The mean of one value per row, (n,)."""
        return self.estimate(lambda picked: float(values[picked].mean()), works)


def asked_on(path: str, own_path: str) -> str:
    """The path of a row, for people: in a control run also the path that the items are for."""
    return path if path == own_path else f"{path} (items for {own_path})"


def grouped(rows: Sequence[T], key: Callable[[T], tuple[str | int, ...]]) -> list[list[T]]:
    """Rows by key, sorted by it."""
    groups: dict[tuple[str | int, ...], list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [groups[name] for name in sorted(groups)]


def path_order(path: str, own_path: str) -> tuple[int, int]:
    """The part of a key that puts paths in their own order."""
    return PATHS.index(path), PATHS.index(own_path)
