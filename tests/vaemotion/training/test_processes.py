"""Several processes as ``torchrun`` starts them, over gloo: the same global batch, the same training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.paths import ROOT

STAGES = ("base", "align", "emotion")
STEPS = 3


def settings(accumulate: int) -> list[str]:
    common = (f"steps={STEPS}", "log_every=1", "workers=0", 'precision="no"', f"accumulate={accumulate}")
    every = [f"{stage}.optimisation.{key}" for stage in STAGES for key in common]
    # Stage 2 has enough labels for CCC in the whole batch and too few in each half: the halves must be
    # gathered.
    return [
        *every,
        "base.optimisation.batch=8",
        "align.optimisation.batch=8",
        "emotion.optimisation.batch=48",
        "align.works=8",
        "emotion.works=40",
        "emotion.language_batch=4",
        "emotion.dropout=0.0",
    ]


def run_stages(runs: Path, processes: int, accumulate: int = 1) -> Path:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [
        sys.executable,
        *launch,
        "-m",
        "tests.vaemotion.training.three_stages",
        str(runs),
        *settings(accumulate),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count(f"processes: {processes}") == processes
    return runs


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_stages(tmp_path_factory.mktemp("alone"), 1)


def losses(runs: Path, stage: str) -> list[dict[str, float]]:
    lines = (runs / f"{stage}.training" / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "steps_per_s"} for line in lines]


def largest_difference(a: Path, b: Path, stage: str) -> float:
    """Return the largest difference of any trained weight, before it is rounded to be stored."""
    one, other = (load_file(runs / f"{stage}.training" / "training_state.safetensors") for runs in (a, b))
    weights = [key for key in one if key.startswith("weight.")]
    assert weights
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in weights)


def test_two_processes_equal_one_with_the_same_global_batch(alone: Path, tmp_path: Path) -> None:
    two = run_stages(tmp_path / "two", 2)
    for stage in STAGES:
        first, second = losses(alone, stage), losses(two, stage)
        assert [row["step"] for row in first] == [row["step"] for row in second] == list(range(1, STEPS + 1))
        for row, same in zip(first, second, strict=True):
            assert row == pytest.approx(same, rel=1e-4, abs=1e-4), stage
        difference = largest_difference(alone, two, stage)
        print(f"{stage}: largest difference of a weight {difference:.1e}")
        assert difference < 1e-4, stage
    made = [sorted(f.name.split("-")[0] for f in runs.iterdir()) for runs in (alone, two)]
    # Two processes make one cache of windows too, under the hash of their own base.
    assert made[0] == made[1]


def test_accumulated_passes_are_one_step(alone: Path, tmp_path: Path) -> None:
    """Equal except for CCC, which needs its whole batch, and the mean over answer tokens of each pass."""
    accumulated = run_stages(tmp_path / "accumulated", 1, accumulate=2)
    for stage in STAGES:
        assert [row["step"] for row in losses(accumulated, stage)] == list(range(1, STEPS + 1))
    assert torch.isfinite(torch.tensor(largest_difference(alone, accumulated, "base")))
    assert largest_difference(alone, accumulated, "base") < 3e-3
