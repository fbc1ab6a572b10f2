"""Fixtures of all trainings in the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tiny import with_many_stops


@pytest.fixture(autouse=True, scope="module")
def short_answers() -> Iterator[None]:
    """Let every third token end an answer: a teacher with random weights never stops by itself."""
    with pytest.MonkeyPatch.context() as patch:
        with_many_stops(patch.setattr)
        yield
