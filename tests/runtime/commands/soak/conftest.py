"""A short recording for the simulated devices of a soak."""

from __future__ import annotations

import pytest

from runtime.commands.soak.film import Recording, make_recording


@pytest.fixture(scope="module")
def film() -> Recording:
    """Return ten seconds of generated frames, 24 × 24, and sound."""
    return make_recording(24, seed=0, duration_s=10)
