"""Results of engines that are not finite: no evidence, counted and told; another engine is tried.

In: the results of each component, and the time. Out: whether a result may be used, and sentences for the
technician.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.engines.fallback import FallbackEngine
from runtime.engines.io import Engine
from runtime.losses import Losses

NOT_FINITE = "not finite: NaN or infinity"
SWITCH_AFTER_S = 5.0  # without a single finite result; then the next engine is tried


@dataclass
class _Component:
    losses: Losses
    # Since the last ``step``: a result was lost, a finite one came.
    lost: bool = False
    came: bool = False
    # Time since which nothing finite came; None while it does.
    failing_since_s: float | None = None


class FiniteResults:
    """The results of a predictor's engines that are finite, and the count of the others."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        """Take the engines by role. A ``FallbackEngine`` is switched when it gives nothing finite."""
        self._engines = engines
        self._components = {role: _Component(Losses(f"results of the {role}")) for role in engines}

    def are_finite(self, role: str, *results: npt.NDArray[np.floating]) -> bool:
        """Return True for a result that may be used; count any other."""
        if all(np.isfinite(result).all() for result in results):
            self._components[role].came = True
            return True
        self.lose(role)
        return False

    def lose(self, role: str) -> None:
        """Count a result that is not finite."""
        self._components[role].lost = True
        self._components[role].losses.add(NOT_FINITE)

    @property
    def lost(self) -> dict[str, int]:
        """Counts of lost results by kind, without zeros."""
        counts = {role: component.losses.count for role, component in self._components.items()}
        return {f"results of the {role}": count for role, count in counts.items() if count}

    def step(self, now_s: float) -> list[str]:
        """Switch engines that gave nothing finite for ``SWITCH_AFTER_S``; return what is due to be told."""
        sentences: list[str] = []
        for role, component in self._components.items():
            if component.came:
                component.failing_since_s = None
                component.losses.end()
            elif component.lost and component.failing_since_s is None:
                component.failing_since_s = now_s
            component.lost = component.came = False
            if sentence := component.losses.sentence(now_s):
                sentences.append(sentence)
            since_s = component.failing_since_s
            if since_s is not None and now_s - since_s >= SWITCH_AFTER_S:
                component.failing_since_s = None
                sentences += self._switch(role)
        return sentences

    def _switch(self, role: str) -> list[str]:
        engine = self._engines[role]
        if not (isinstance(engine, FallbackEngine) and engine.fall_back()):
            return []
        return [f"nothing finite for {SWITCH_AFTER_S:g} s, so another engine is taken: {engine.announcement}"]
