"""The thread budget: the number of cores for the engines and for the language model.

Where they take turns each gets all cores: for a question about a clip, and for a file at ``--pace max``.
Where they run side by side they share them: in a live run a narration is made while perception goes on
ten times a second, and threads of both on one core would make each wait for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.machine.facts import usable_cpus

MOST = 4  # threads of either; small models gain nothing from more


@dataclass(frozen=True)
class ThreadBudget:
    """Threads of each engine (one engine runs at a time) and of the language model."""

    engines: int
    language_model: int


def thread_budget(cores: int = 0, *, side_by_side: bool = False) -> ThreadBudget:
    """Divide ``cores`` (0: all that this process may use), at most ``MOST`` for either.

    ``side_by_side``: perception and narrator run at the same time.
    """
    cores = cores or usable_cpus()
    if not side_by_side:
        return ThreadBudget(min(MOST, cores), min(MOST, cores))
    engines = max(1, cores // 2)
    return ThreadBudget(min(MOST, engines), min(MOST, max(1, cores - engines)))
