"""The hearing report's verdict: rules, the figures that decided each, and one sentence.

In: the measured results. Out: rules, targets and the verdict; a `HearingReport` holds them with all results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.hearing.alignment import RETRIEVED, Leakage, Retrieval, SwappedSound, VisualClass
from vaemotion.evaluation.hearing.conditions import CONTROL, Recognition
from vaemotion.evaluation.hearing.material import MANIFEST, PROCEDURAL

RECORDINGS_TARGET = 0.80  # accuracy on recordings that the project aims at
SHUFFLED_TIMES_CHANCE = 2.0

NO_MANIFEST = "no --manifest was given"
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

    ``rules`` decide the verdict, ``targets`` do not. ``not_measured``: a sentence for every part that the
    material did not allow. ``origin``: the checkpoints, data and settings, as plain
    values.
    """

    verdict: str
    rules: tuple[Rule, ...]
    targets: tuple[Rule, ...]
    recognised: tuple[Recognition, ...]
    retrieved: tuple[Retrieval, ...]
    followed: tuple[SwappedSound, ...]
    leaked: tuple[Leakage, ...]
    visual_classes: tuple[VisualClass, ...]
    not_measured: tuple[str, ...]
    bootstrap: Bootstrap
    origin: dict[str, Any]


def verdict_rules(recognised: Sequence[Recognition], retrieved: Sequence[Retrieval]) -> tuple[Rule, ...]:
    """Decide the rules of the verdict. ``retrieved``: from sound to sight, of each material with frames."""
    rules: list[Rule] = []
    for found in recognised:
        rules.append(_above_controls(found))
        rules.append(_shuffled_near_chance(found))
    if all(found.kind == PROCEDURAL for found in recognised):
        rules.append(Rule("the same for real clips", NOT_TESTED, NO_MANIFEST))
    k = max(RETRIEVED)
    for found in retrieved:
        recall, chance = found.recall[k], found.chance(k)
        text = f"{found.material}: {found.name}: R@{k}'s interval lies above chance"
        decided = f"from {recall.low:.3f} on, chance {chance:.3f}"
        rules.append(Rule(text, _outcome(recall.low > chance), decided))
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
    """Decide the project's target for real sounds, which does not count for the verdict."""
    text = f"real sounds: {RECORDINGS_TARGET:.2f} or more from sound alone, learned from frames only"
    real = [found for found in recognised if found.kind == MANIFEST]
    if not real:
        return (Rule(text, NOT_TESTED, NO_MANIFEST),)
    own = real[0].condition("the model").accuracy
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


def confusion_file(kind: str) -> str:
    """Name the file of the confusion matrix of a kind of material."""
    return f"confusion-{kind}.png"
