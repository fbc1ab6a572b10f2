"""What "hears" means in the hearing report: rules, each with what decided it, and one sentence.

In: what was measured. Out: the verdict, and everything together as a `HearingReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vaemotion.evaluation.hearing_alignment import RETRIEVED, Follows, Leakage, Retrieval, ShapeClass
from vaemotion.evaluation.hearing_conditions import CONTROL, Recognition
from vaemotion.evaluation.rows import Bootstrap

RECORDINGS_TARGET = 0.80  # recognition of recordings that the project sets itself as its aim
SHUFFLED_TIMES_CHANCE = 2.0

PASSED, FAILED, NOT_TESTED = "passed", "failed", "not tested"


@dataclass(frozen=True)
class Rule:
    """``outcome``: passed, failed or not tested; ``found``: the figures that decided it."""

    text: str
    outcome: str
    found: str


@dataclass(frozen=True)
class HearingReport:
    """``rules`` decide the verdict, ``targets`` do not. ``origin``: what was measured and how it was made, as plain values."""

    verdict: str
    rules: tuple[Rule, ...]
    targets: tuple[Rule, ...]
    recognised: tuple[Recognition, ...]
    retrieved: tuple[Retrieval, ...]
    followed: Follows
    leaked: tuple[Leakage, ...]
    shape_class: tuple[ShapeClass, ...]
    bootstrap: Bootstrap
    origin: dict[str, Any]


def verdict_rules(recognised: Sequence[Recognition], retrieved: Retrieval) -> tuple[Rule, ...]:
    """What "hears" means here, each rule with what decided it."""
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
    measured = [
        (c.accuracy.high, c.name) for c in found.conditions if c.kind == CONTROL and c.accuracy is not None
    ]
    high, name = max(measured)
    text = (
        f"{found.material}: the model's interval lies above the interval of every control that was measured"
    )
    return Rule(
        text,
        _outcome(own.low > high),
        f"from {own.low:.3f} on; the highest control, {name}, up to {high:.3f}",
    )


def _shuffled_near_chance(found: Recognition) -> Rule:
    limit = SHUFFLED_TIMES_CHANCE * found.chance
    accuracy = found.condition("stage 1 on shuffled pairs").accuracy
    text = f"{found.material}: stage 1 on shuffled pairs stays at {limit:.3f} or below, twice the chance"
    if accuracy is None:
        return Rule(text, NOT_TESTED, "no --shuffled was given")
    return Rule(text, _outcome(accuracy.value <= limit + 1e-9), f"{accuracy.value:.3f}")


def targets(recognised: Sequence[Recognition]) -> tuple[Rule, ...]:
    """The project's own aim for recordings."""
    text = f"recordings: {RECORDINGS_TARGET:.2f} or more from sound alone, pictures the only teacher"
    if len(recognised) == 1:
        return (Rule(text, NOT_TESTED, "no --recordings were given"),)
    own = recognised[1].condition("the model").accuracy
    assert own is not None
    return (Rule(text, _outcome(own.value >= RECORDINGS_TARGET), f"{own.value:.3f}"),)


def verdict(rules: Sequence[Rule]) -> str:
    """One sentence."""
    failed, untested = ([r for r in rules if r.outcome == o] for o in (FAILED, NOT_TESTED))
    tested = len(rules) - len(untested)
    if failed:
        return f"The model does not hear: {len(failed)} of {tested} tested rules failed."
    if untested:
        return f"The model hears, as far as it was tested: it passed {tested} rules, and {len(untested)} could not be tested."
    return f"The model hears: it passed all {tested} rules."


def _outcome(passed: bool) -> str:
    return PASSED if passed else FAILED
