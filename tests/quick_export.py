"""Exports of a test: they run every step, and measure on less what the test does not assert."""

from __future__ import annotations

from functools import partial

import pytest

from calibration import confidence
from export.int8.judge import Budget

CONFIDENCE_WORKS = 40  # of the 200 that an export asks for


def fit_confidence_on_few_works(patch: pytest.MonkeyPatch) -> None:
    """Let exports fit the confidence of readings on ``CONFIDENCE_WORKS`` works."""
    affordable = confidence.affordable

    def few(count: int, work_s: float, most_s: float) -> int:
        return min(CONFIDENCE_WORKS, affordable(count, work_s, most_s))

    patch.setattr(confidence, "affordable", few)


def judge_jitter_on_few_clips(patch: pytest.MonkeyPatch) -> None:
    """Let exports measure jitter on two clips, and hold whatever is measured on so few."""
    patch.setattr("export.int8.judge.JITTER_CLIPS", 2)
    patch.setattr("export.pack.Budget", partial(Budget, max_jitter_ratio=100.0))
