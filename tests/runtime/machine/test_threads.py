"""The thread budget: cores are shared side by side, and all are used in turns."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.machine.threads import MOST, thread_budget
from tests.media import write_work
from vaemotion.cli.main import main


@given(cores=st.integers(1, 256))
def test_side_by_side_never_takes_more_than_the_cores(cores: int) -> None:
    shared, turns = thread_budget(cores, side_by_side=True), thread_budget(cores)
    assert min(shared.engines, shared.language_model) >= 1
    if cores > 1:
        assert shared.engines + shared.language_model <= cores
    assert turns.engines == turns.language_model == min(MOST, cores)
    assert shared.engines <= turns.engines


def test_by_default_the_cores_of_this_process_are_shared() -> None:
    assert thread_budget(0) == thread_budget(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("words", "threads"),
    [
        (["--pace", "real"], 1),
        (["--pace", "real", "--narrate-every", "0"], 2),
        (["--pace", "max"], 2),
    ],
)
def test_a_run_whose_narrator_has_a_thread_of_its_own_leaves_it_cores(
    small_bundle: Path, tmp_path: Path, words: list[str], threads: int
) -> None:
    clip, out = write_work(tmp_path / "clip.mkv", 0.5), tmp_path / "timeline"
    assert main(["run", str(small_bundle), str(clip), "--threads", "2", "--out", f"jsonl:{out}", *words]) == 0
    engines = json.loads(out.read_text().splitlines()[0])["engines"]
    assert all(f"{threads} threads" in line for line in engines[:3]), engines
