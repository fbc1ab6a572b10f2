"""All results of a benchmark run. In: answer rows, affect rows and windows. Out: a `Report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vaemotion.evaluation.benchmark.affects import (
    AffectResult,
    DistributionResult,
    GainResult,
    affect_results,
    distribution_results,
    gain_results,
)
from vaemotion.evaluation.benchmark.choices import ChoiceResult, ListedResult, choice_results, listed_results
from vaemotion.evaluation.benchmark.rows import AffectRow, AnswerRow, Bootstrap
from vaemotion.evaluation.benchmark.series import SeriesResult, WindowRow, series_results


@dataclass(frozen=True)
class Report:
    """The results of one model on one benchmark, with the rows that they are computed from.

    ``left_out``: number of items, by reason, that no figure counts. ``path``: in a control run, the path that
    every item was asked on; None when each was asked on its own. ``wall_s``: seconds that the evaluation
    took.
    """

    choices: tuple[ChoiceResult, ...]
    listed: tuple[ListedResult, ...]
    affects: tuple[AffectResult, ...]
    gains: tuple[GainResult, ...]
    distributions: tuple[DistributionResult, ...]
    series: tuple[SeriesResult, ...]
    answers: tuple[AnswerRow, ...]
    readings: tuple[AffectRow, ...]
    windows: tuple[WindowRow, ...]
    left_out: dict[str, int]
    path: str | None
    bootstrap: Bootstrap
    wall_s: float


def make_report(
    answers: Sequence[AnswerRow],
    readings: Sequence[AffectRow],
    windows: Sequence[WindowRow],
    left_out: Mapping[str, int],
    path: str | None,
    bootstrap: Bootstrap,
    wall_s: float,
) -> Report:
    """Compute the results of all answer rows, affect rows and windows."""
    return Report(
        choices=choice_results(answers, bootstrap),
        listed=listed_results(answers, bootstrap),
        affects=affect_results(readings, bootstrap),
        gains=gain_results(readings, bootstrap),
        distributions=distribution_results(readings, bootstrap),
        series=series_results(windows, bootstrap),
        answers=tuple(answers),
        readings=tuple(readings),
        windows=tuple(windows),
        left_out={reason: count for reason, count in left_out.items() if count},
        path=path,
        bootstrap=bootstrap,
        wall_s=wall_s,
    )
