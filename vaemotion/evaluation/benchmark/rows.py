"""Single answers and affect predictions, and estimates over many of them with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prediction import Affect
from vaemotion.data.manifest.item import Item
from vaemotion.evaluation.metrics import bootstrap_interval

T = TypeVar("T")
Array = npt.NDArray[np.float64]
Picked = npt.NDArray[np.intp]
MediumKey = tuple[str | float | None, ...]
DIMENSIONS = ("valence", "arousal")
BLOCK_S = 10.0  # of one work over time, drawn as a whole
FEWEST_BLOCKS = 8  # where a work is short, its blocks are shorter


@dataclass(frozen=True)
class AnswerRow:
    """An item's multiple-choice answer.

    ``path``: the path that the item was asked on. ``log_probabilities``: mean token log-probability of each
    option. ``written``: one greedy answer per rotation of the listed options.
    """

    item: Item
    path: str
    log_probabilities: tuple[float, ...]
    written: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The item's options."""
        return self.item.options or ()

    @property
    def right_index(self) -> int:
        """Index of the right option."""
        return self.item.answer_index or 0

    @property
    def chosen_index(self) -> int:
        """Index of the option with the highest log-probability."""
        return int(np.argmax(self.log_probabilities))

    @property
    def chosen(self) -> str:
        """The option with the highest log-probability."""
        return self.options[self.chosen_index]


@dataclass(frozen=True)
class AffectRow:
    """The affect predicted for one medium on one path, of the construct that ``item``'s labels are about."""

    item: Item
    path: str
    affect: Affect


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over works."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the figure for a report, for example "0.812 [0.790, 0.831]"."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the bootstrap intervals: the number of resamples, and the seed."""

    resamples: int = 1000
    seed: int = 0

    def estimate(self, statistic: Callable[[Picked], float], works: Sequence[str]) -> Estimate:
        """Estimate a statistic with its interval.

        ``statistic``: a function of row numbers; ``works``: the work that each row belongs to, (n,).
        """
        low, high = bootstrap_interval(statistic, works, resamples=self.resamples, seed=self.seed)
        return Estimate(statistic(np.arange(len(works))), low, high)

    def mean(self, values: Array, works: Sequence[str]) -> Estimate:
        """Estimate the mean of one value per row, (n,)."""
        return self.estimate(lambda picked: float(values[picked].mean()), works)


def time_blocks(n: int, step_s: float) -> list[str]:
    """Return the block that each of n points of one work belongs to, ``step_s`` apart, for a bootstrap.

    Neighboring points are not independent, so blocks of time are drawn as a whole. They do not overlap
    (Carlstein 1986, Ann. Stat. 14:1171).
    """
    block_s = min(BLOCK_S, n * step_s / FEWEST_BLOCKS)
    return [str(int(k * step_s / block_s)) for k in range(n)]


def asked_on(path: str, own_path: str) -> str:
    """Name the path of a row; in a control run also the path that its items are for."""
    return path if path == own_path else f"{path} (items for {own_path})"


def grouped(rows: Sequence[T], key: Callable[[T], tuple[str | int, ...]]) -> list[list[T]]:
    """Group rows by a key; the groups are sorted by it."""
    groups: dict[tuple[str | int, ...], list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [groups[name] for name in sorted(groups)]


def path_order(path: str, own_path: str) -> tuple[int, int]:
    """Return the part of a sorting key that puts paths in the order of ``PATHS``."""
    return PATHS.index(path), PATHS.index(own_path)


def medium_key(item: Item) -> MediumKey:
    """Identify an item's medium by its files and the part of them."""
    return (item.video, item.image, item.audio, item.t0, item.t1)
