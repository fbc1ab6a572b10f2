"""Timing of a run's stages: wall-clock milliseconds, and processor seconds of the measuring thread."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np


class StageTimes:
    """Durations of each stage, of which the newest few thousand are kept. One thread measures."""

    def __init__(self) -> None:
        self._ms: dict[str, list[float]] = {}
        self._counts: dict[str, int] = {}
        self._total_s: dict[str, float] = {}
        self._cpu_s: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str, count: int = 1) -> Generator[None]:
        """Time the ``with`` block; each of its ``count`` items is recorded with an equal share."""
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        yield
        cpu_s, took_s = time.thread_time() - began_cpu_s, time.perf_counter() - began_s
        kept = self._ms.setdefault(stage, [])
        kept.append(took_s * 1000 / count)
        self._total_s[stage] = self._total_s.get(stage, 0.0) + took_s
        self._cpu_s[stage] = self._cpu_s.get(stage, 0.0) + cpu_s
        self._counts[stage] = self._counts.get(stage, 0) + count
        if len(kept) > 4096:
            del kept[:2048]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return per stage: count, p50, p95 and max in ms of the newest, ``total_s`` and ``cpu_s`` of all.

        ``cpu_s`` is the measuring thread's processor time: what an engine or a decoder does on threads of
        its own is not in it.
        """
        return {
            stage: {
                "count": self._counts[stage],
                "p50": round(float(np.percentile(ms, 50)), 3),
                "p95": round(float(np.percentile(ms, 95)), 3),
                "max": round(max(ms), 3),
                "total_s": round(self._total_s[stage], 3),
                "cpu_s": round(self._cpu_s[stage], 3),
            }
            for stage, ms in dict(self._ms).items()
        }
