"""Interleaved timing of several contenders that do the same work.

Interleaving spreads any other load of the machine over all contenders. In: calls by name. Out: wall and CPU
time of each repetition, and ratios between times of the same repetition.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

LEAST_S = 0.02  # a repetition repeats a short call until it takes this long
REPETITIONS = 7
T = TypeVar("T")


@dataclass
class Times:
    """Time of one call per repetition, in ms: wall time, and CPU time of all threads of the process."""

    wall_ms: list[float] = field(default_factory=list[float])
    cpu_ms: list[float] = field(default_factory=list[float])

    @property
    def median_ms(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall_ms)


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of the repetitions' ratios."""

    median: float
    least: float
    most: float


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repetitions: int = REPETITIONS,
    least_s: float = LEAST_S,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Times]:
    """Time every call ``repetitions`` times, each repetition in another seeded order.

    Two calls before them are not timed: one to warm up, one to count how many calls take ``least_s``. ``log``
    receives one line per repetition.
    """
    counts: dict[str, int] = {}
    for name, call in calls.items():
        call()
        began_s = time.perf_counter()
        call()
        counts[name] = max(1, round(least_s / max(time.perf_counter() - began_s, 1e-7)))
    times = {name: Times() for name in calls}
    order = random.Random(0)
    for repetition in range(repetitions):
        for name in order.sample(list(calls), len(calls)):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            for _ in range(counts[name]):
                calls[name]()
            times[name].wall_ms.append((time.perf_counter() - wall_s) * 1e3 / counts[name])
            times[name].cpu_ms.append((time.process_time() - cpu_s) * 1e3 / counts[name])
        now = ", ".join(f"{name} {times[name].wall_ms[-1]:.3g} ms" for name in calls)
        log(f"{repetition + 1}/{repetitions}: {now}")
    return times


def interleaved_results(calls: Mapping[str, Callable[[], T]], repetitions: int) -> dict[str, list[T]]:
    """Run every call ``repetitions`` times, interleaved, and return what each gave, without the warm-up.

    Progress goes to standard output.
    """
    results: dict[str, list[T]] = {name: [] for name in calls}

    def keep(name: str) -> None:
        results[name].append(calls[name]())

    interleaved({name: partial(keep, name) for name in calls}, repetitions, 0.0, partial(print, flush=True))
    return {name: kept[-repetitions:] for name, kept in results.items()}


def ratio(above: list[float], below: list[float]) -> Ratio:
    """Return the ratios ``above[i] / below[i]`` of times that were measured in the same repetition."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
