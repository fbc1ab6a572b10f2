"""The hearing report's verdict: rules, the figures that decided each, and one sentence.

In: the measured results. Out: rules, targets and the verdict; a `HearingReport` holds them with all results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.hearing.alignment import RETRIEVED, Leakage, Retrieval, ShapeClass, SwappedSound
from vaemotion.evaluation.hearing.conditions import CONTROL, Recognition

RECORDINGS_TARGET = 0.80  # accuracy on recordings that the project aims at
SHUFFLED_TIMES_CHANCE = 2.0

PASSED, FAILED, NOT_TESTED = "passed", "failed", "not tested"


@dataclass(frozen=True)
class Rule:
    """A rule or target. ``outcome``: passed, failed or not tested; ``found``: the figures that decided it."""

    text: str
    outcome: str
    found: str


@dataclass(frozen=True)
class HearingReport:
    """All results of the hearing report.

    ``rules`` decide the verdict, ``targets`` do not. ``origin``: the checkpoints, data and settings, as plain
    values.
    """

    verdict: str
    rules: tuple[Rule, ...]
    targets: tuple[Rule, ...]
    recognised: tuple[Recognition, ...]
    retrieved: tuple[Retrieval, ...]
    followed: SwappedSound
    leaked: tuple[Leakage, ...]
    shape_class: tuple[ShapeClass, ...]
    bootstrap: Bootstrap
    origin: dict[str, Any]


def verdict_rules(recognised: Sequence[Recognition], retrieved: Retrieval) -> tuple[Rule, ...]:
    """Decide the rules of the verdict. ``recognised``: procedural works, then recordings if there are any."""
    rules: list[Rule] = []
    for found in recognised:
        rules.append(_above_controls(found))
        rules.append(_shuffled_near_chance(found))
    if len(recognised) == 1:
        rules.append(Rule("the same for recordings", NOT_TESTED, "no --recordings were given"))
    k = max(RETRIEVED)
    recall, chance = retrieved.recall[k], retrieved.chance(k)
    text = f"{retrieved.name}: R@{k}'s interval lies above chance"
    rules.append(Rule(text, _outcome(recall.low > chance), f"from {recall.low:.3f} on, chance {chance:.3f}"))
    return tuple(rules)


def _above_controls(found: Recognition) -> Rule:
    own = found.condition("the model").accuracy
    assert own is not None
    controls = [c for c in found.conditions if c.kind == CONTROL]
    high, name = max((c.accuracy.high, c.name) for c in controls if c.accuracy is not None)
    text = f"{found.material}: the model's interval lies above the interval of every measured control"
    decided = f"from {own.low:.3f} on; the highest control, {name}, up to {high:.3f}"
    return Rule(text, _outcome(own.low > high), decided)


def _shuffled_near_chance(found: Recognition) -> Rule:
    limit = SHUFFLED_TIMES_CHANCE * found.chance
    accuracy = found.condition("stage 1 on shuffled pairs").accuracy
    text = f"{found.material}: stage 1 on shuffled pairs stays at {limit:.3f} or below, twice chance"
    if accuracy is None:
        return Rule(text, NOT_TESTED, "no --shuffled was given")
    return Rule(text, _outcome(accuracy.value <= limit + 1e-9), f"{accuracy.value:.3f}")


def targets(recognised: Sequence[Recognition]) -> tuple[Rule, ...]:
    """Decide the project's target for recordings, which does not count for the verdict."""
    text = f"recordings: {RECORDINGS_TARGET:.2f} or more from sound alone, learned from frames only"
    if len(recognised) == 1:
        return (Rule(text, NOT_TESTED, "no --recordings were given"),)
    own = recognised[1].condition("the model").accuracy
    assert own is not None
    return (Rule(text, _outcome(own.value >= RECORDINGS_TARGET), f"{own.value:.3f}"),)


def verdict(rules: Sequence[Rule]) -> str:
    """Summarize the rules in one sentence."""
    failed, untested = ([r for r in rules if r.outcome == o] for o in (FAILED, NOT_TESTED))
    tested = len(rules) - len(untested)
    if failed:
        return f"The model does not hear: {len(failed)} of {tested} tested rules failed."
    if untested:
        return (
            f"The model hears, as far as it was tested: it passed {tested} rules, "
            f"and {len(untested)} could not be tested."
        )
    return f"The model hears: it passed all {tested} rules."


def _outcome(passed: bool) -> str:
    return PASSED if passed else FAILED


def confusion_file(number: int) -> str:
    """Name the file of the confusion matrix of the first (0) or second (1) material."""
    return ("confusion-procedural.png", "confusion-recordings.png")[number]
