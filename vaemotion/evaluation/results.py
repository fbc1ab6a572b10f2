"""Everything that a benchmark run found. In: answered items and affect readings. Out: a `Report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vaemotion.evaluation.affects import (
    AffectResult,
    DistributionResult,
    GainResult,
    affect_results,
    distribution_results,
    gain_results,
)
from vaemotion.evaluation.choices import ChoiceResult, ListedResult, choice_results, listed_results
from vaemotion.evaluation.rows import Answer, Bootstrap, Reading


@dataclass(frozen=True)
class Report:
    """``left_out``: items, by reason, that no figure counts. ``path``: the one that every item was asked on, in a control run;
    None: each on its own."""

    choices: tuple[ChoiceResult, ...]
    listed: tuple[ListedResult, ...]
    affects: tuple[AffectResult, ...]
    gains: tuple[GainResult, ...]
    distributions: tuple[DistributionResult, ...]
    answers: tuple[Answer, ...]
    readings: tuple[Reading, ...]
    left_out: dict[str, int]
    path: str | None
    bootstrap: Bootstrap
    wall_s: float


def make_report(
    answers: Sequence[Answer],
    readings: Sequence[Reading],
    left_out: Mapping[str, int],
    path: str | None,
    bootstrap: Bootstrap,
    wall_s: float,
) -> Report:
    """The figures of all answers and readings."""
    return Report(
        choices=choice_results(answers, bootstrap),
        listed=listed_results(answers, bootstrap),
        affects=affect_results(readings, bootstrap),
        gains=gain_results(readings, bootstrap),
        distributions=distribution_results(readings, bootstrap),
        answers=tuple(answers),
        readings=tuple(readings),
        left_out={reason: count for reason, count in left_out.items() if count},
        path=path,
        bootstrap=bootstrap,
        wall_s=wall_s,
    )
