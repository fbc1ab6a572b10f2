"""The thread budget: how many of the cores the engines and the language model get, decided here and nowhere else.

What takes turns gets all of them: a question about a clip, a file at ``--pace max``. What runs side by side shares them: in a live run a
sentence is made while perception goes on ten times a second, and threads of both on one core would make each wait for the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MOST = 4  # small models gain nothing from more


@dataclass(frozen=True)
class ThreadBudget:
    """Threads of each engine (one engine runs at a time) and of the language model."""

    engines: int
    language_model: int


def thread_budget(cores: int = 0, *, side_by_side: bool = False) -> ThreadBudget:
    """Of ``cores``, 0: all that this process may use; at most ``MOST`` for either. ``side_by_side``: perception and narrator run at the same time."""
    cores = cores or len(os.sched_getaffinity(0))
    if not side_by_side:
        return ThreadBudget(min(MOST, cores), min(MOST, cores))
    engines = max(1, cores // 2)
    return ThreadBudget(min(MOST, engines), min(MOST, max(1, cores - engines)))
