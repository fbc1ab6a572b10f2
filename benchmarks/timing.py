"""Calls side by side: the same work by several contenders, interleaved, so that whatever else the machine does meets all of them.

In: calls by name. Out: wall and CPU time of each repetition, and ratios of medians that pair what ran in the same repetition.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

LEAST_S = 0.02  # a repetition of a short call runs it so often that it takes this long
REPETITIONS = 7
T = TypeVar("T")


@dataclass
class Times:
    """Milliseconds of one call, per repetition: as the clock on the wall saw it, and as all of the process's threads worked."""

    wall_ms: list[float] = field(default_factory=list[float])
    cpu_ms: list[float] = field(default_factory=list[float])

    @property
    def median_ms(self) -> float:
        return statistics.median(self.wall_ms)


@dataclass(frozen=True)
class Ratio:
    """The median of the repetitions' ratios, and the smallest and largest of them."""

    median: float
    least: float
    most: float


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repetitions: int = REPETITIONS,
    least_s: float = LEAST_S,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Times]:
    """Time every call ``repetitions`` times, each repetition in another order (seeded), after one call to warm up. ``tell``: is told of each
    repetition."""
    counts: dict[str, int] = {}
    for name, call in calls.items():
        call()
        began_s = time.perf_counter()
        call()
        counts[name] = max(1, round(least_s / max(time.perf_counter() - began_s, 1e-7)))
    times = {name: Times() for name in calls}
    chance = random.Random(0)
    for repetition in range(repetitions):
        for name in chance.sample(list(calls), len(calls)):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            for _ in range(counts[name]):
                calls[name]()
            times[name].wall_ms.append((time.perf_counter() - wall_s) * 1e3 / counts[name])
            times[name].cpu_ms.append((time.process_time() - cpu_s) * 1e3 / counts[name])
        now = ", ".join(f"{name} {times[name].wall_ms[-1]:.3g} ms" for name in calls)
        tell(f"{repetition + 1}/{repetitions}: {now}")
    return times


def in_turns(works: Mapping[str, Callable[[], T]], repetitions: int) -> dict[str, list[T]]:
    """What each work gave in its ``repetitions``, interleaved and told on standard output; what warms up is left out."""
    found: dict[str, list[T]] = {name: [] for name in works}

    def keep(name: str) -> None:
        found[name].append(works[name]())

    interleaved({name: partial(keep, name) for name in works}, repetitions, 0.0, partial(print, flush=True))
    return {name: kept[-repetitions:] for name, kept in found.items()}


def ratio(above: list[float], below: list[float]) -> Ratio:
    """Of what was measured in the same repetitions: ``above[i] / below[i]``."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
