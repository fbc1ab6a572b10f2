"""Mutated media files give values or a MediaError: no other exception, no hang, no native crash.

The long run is ``scripts/media-fuzz``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.zoo.children import each
from tests.zoo.fuzz import mutants, read
from tests.zoo.workshop import Workshop, missing_tools
from tests.zoo.zoo import sample, zoo

FILES, SOURCES, SEED, LIMIT_S = 100, 24, 28, 60.0


@pytest.mark.skipif(bool(missing_tools()), reason=f"{missing_tools()} not found")
def test_mutated_files_give_values_or_a_media_error(tmp_path: Path):
    made = Workshop(tmp_path).make_all(sample(zoo(), SOURCES, SEED))
    sources = [path for _, path in made if isinstance(path, Path)]
    assert len(sources) > 0.8 * SOURCES
    (tmp_path / "mutants").mkdir()
    outcomes = list(each(read, mutants(sources, FILES, SEED, tmp_path / "mutants"), LIMIT_S))
    assert len(outcomes) == FILES
    failed = [f"{outcome.argument}: {outcome.failure}" for outcome in outcomes if outcome.failure]
    assert not failed, "\n".join(failed)
    # The mutations do reach the decoders: some files are read, some refused.
    said = {value for outcome in outcomes for value in outcome.value or ()}
    assert said == {"values", "refused"}


def test_mutant_of_a_seed_is_always_the_same(tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 40)
    first, again, other = (mutants([source], 3, seed, tmp_path / str(n)) for n, seed in enumerate((1, 1, 2)))
    written = []
    for n, made in enumerate((first, again, other)):
        (tmp_path / str(n)).mkdir()
        for mutant in made:
            mutant.write()
        written.append([mutant.path.read_bytes() for mutant in made])
    assert written[0] == written[1] != written[2]
    assert source.read_bytes() not in written[0]


def _act(what: str) -> str:
    if what == "crash":
        os.abort()
    if what == "hang":
        time.sleep(600)
    if what == "raise":
        raise ValueError("out of range")
    return what


def test_crash_hang_and_exception_cost_one_call_each_and_are_named():
    outcomes = {
        o.argument: o for o in each(_act, ["a", "crash", "b", "raise", "c", "hang", "d"], 2.0, workers=1)
    }
    assert [outcomes[value].value for value in "abcd"] == list("abcd")
    assert outcomes["crash"].failure == "crash: SIGABRT"
    assert outcomes["crash"].after == ()
    assert outcomes["raise"].failure.startswith("ValueError: out of range (test_media_fuzz.py:")
    assert outcomes["hang"].failure == "hang: nothing after 2 s"
