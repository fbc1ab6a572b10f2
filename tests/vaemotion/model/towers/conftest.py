"""A base with a stub for its language model, written once from the real wheels."""

import pytest

from tests.vaemotion.model.towers.cached_wheels import wheelhouse, write_stub
from vaemotion.model.towers.base import Base, make_small_base, read_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Return a base as ``vaemotion base small`` writes it. Tests do not change it."""
    out = tmp_path_factory.mktemp("bases") / "base"
    make_small_base(out, wheelhouse(), write_stub)
    return read_base(out)
