"""An engine with others behind it, which take its place in a run where it gives nothing finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy.typing as npt

from runtime.engines.io import Arrays, OpenedEngine
from vaemotion.contract.errors import UserError


class FallbackEngine:
    """The first of several engines for one component, as an ``OpenedEngine``. One thread owns it."""

    def __init__(self, first: OpenedEngine, later: Iterable[Callable[[], OpenedEngine]]) -> None:
        """Run ``first``. ``later``: functions that open the next engines, in order of preference."""
        self._later = iter(later)
        self._take(first)

    def _take(self, engine: OpenedEngine) -> None:
        self._engine = engine
        self.component, self.runs_on = engine.component, engine.runs_on
        self.announcement = engine.announcement

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one inference, as ``Engine.run`` does."""
        return self._engine.run(arrays)

    def fall_back(self) -> bool:
        """Open the next engine that can be opened, and drop this one. Returns False where none is left."""
        for open_next in self._later:
            try:
                self._take(open_next())
            except UserError:
                continue
            return True
        return False
