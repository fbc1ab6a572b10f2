"""Fixtures of all trainings in the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vaemotion.training import teacher


@pytest.fixture(autouse=True, scope="session")
def short_answers() -> Iterator[None]:
    """Cut the teacher's answers off: one with random weights never stops by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "ANSWER_TOKENS", 6)
        yield
