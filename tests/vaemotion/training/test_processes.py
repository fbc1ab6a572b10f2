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
from vaemotion.cli.main import main
from vaemotion.data.art.build import build_procedural

STAGES = ("base", "align", "emotion")
PACE = ("steps_per_s", "clips_per_s", "data_wait")  # differ from run to run
STEPS = 3


def settings(accumulate: int, clips: str) -> list[str]:
    common = (f"steps={STEPS}", "log_every=1", "workers=0", 'precision="no"', f"accumulate={accumulate}")
    every = [f"{stage}.optimisation.{key}" for stage in STAGES for key in common]
    # Stage 2 has enough labels for CCC in the whole batch and too few in each half: the halves must be
    # gathered.
    return [
        *every,
        "base.optimisation.batch=8",
        "align.optimisation.batch=8",
        "emotion.optimisation.batch=48",
        f"align.clips=['{clips}']",
        *("align.empty_bits=-1.0", "align.incoherent_bits=1.0", "align.repeat_share=1.0"),  # a random teacher
        "emotion.works=40",
        "emotion.language_batch=4",
        "emotion.dropout=0.0",
    ]


def launch(processes: int, module: str, *words: object) -> subprocess.CompletedProcess[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *start, "-m", f"tests.vaemotion.training.{module}", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def run_stages(runs: Path, processes: int, accumulate: int = 1, clips: str = "art:8") -> Path:
    """Train all stages. ``clips``: the source of stage 1, as ``open_clips`` takes it."""
    done = launch(processes, "three_stages", runs, *settings(accumulate, clips))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count(f"processes: {processes}") == processes
    return runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write seven works as videos, and these as three shards, the last one with a single clip."""
    root = tmp_path_factory.mktemp("shards")
    build_procedural(root / "art", "train", 7)
    given = [
        "--from",
        str(root / "art" / "media"),
        "--out",
        str(root / "clips.jsonl"),
        "--license",
        "CC0-1.0",
    ]
    whole = ["--validation", "0", "--test", "0", "--window-s", "1.4", "--media-root", str(root)]
    assert main(["data", "build", "clips", *given, *whole]) == 0
    cut = ["--media-root", str(root), "--to", str(root / "shards"), "--samples-per-shard", "3"]
    assert main(["data", "shard", str(root / "clips.jsonl"), *cut]) == 0
    assert len(list((root / "shards").glob("*.tar"))) == 3
    return root / "shards"


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_stages(tmp_path_factory.mktemp("alone"), 1, clips=str(shards))


def losses(runs: Path, stage: str) -> list[dict[str, float]]:
    lines = (runs / f"{stage}.training" / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in PACE} for line in lines]


def largest_difference(a: Path, b: Path, stage: str) -> float:
    """Return the largest difference of any trained weight, before it is rounded to be stored."""
    one, other = (load_file(runs / f"{stage}.training" / "training_state.safetensors") for runs in (a, b))
    weights = [key for key in one if key.startswith("weight.")]
    assert weights
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in weights)


def test_two_processes_over_uneven_shards_equal_one(alone: Path, shards: Path, tmp_path: Path) -> None:
    two = run_stages(tmp_path / "two", 2, clips=str(shards))
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


def test_accumulated_passes_are_one_step(alone: Path, shards: Path, tmp_path: Path) -> None:
    """Equal except for CCC, which needs its whole batch, and the mean over answer tokens of each pass."""
    accumulated = run_stages(tmp_path / "accumulated", 1, accumulate=2, clips=str(shards))
    for stage in STAGES:
        assert [row["step"] for row in losses(accumulated, stage)] == list(range(1, STEPS + 1))
    assert torch.isfinite(torch.tensor(largest_difference(alone, accumulated, "base")))
    assert largest_difference(alone, accumulated, "base") < 3e-3


def test_a_run_whose_process_was_killed_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch(2, "ranks", "fit", whole).returncode == 0
    assert launch(2, "ranks", "fit", killed, "kill").returncode != 0  # within step 4; the state is of step 2
    assert launch(2, "ranks", "fit", killed, "resume").returncode == 0
    first, second = ((run / "log.jsonl").read_text().splitlines() for run in (whole, killed))
    assert [json.loads(line)["step"] for line in second] == list(range(1, 7))
    for one, other in zip(map(json.loads, first), map(json.loads, second), strict=True):
        assert {k: v for k, v in one.items() if k not in PACE} == pytest.approx(
            {k: v for k, v in other.items() if k not in PACE}
        )
    one, other = (load_file(run / "training_state.safetensors") for run in (whole, killed))
    assert max((one[key] - other[key]).abs().max().item() for key in one) < 1e-6


def test_two_processes_that_share_a_model_out_train_it_as_one_with_a_copy(tmp_path: Path) -> None:
    done = launch(2, "ranks", "sharded", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["dtensors"] == found["parameters"] > 0  # the frozen ones too
    assert found["share"] < 0.55  # each process keeps about half
    # The second step is of a new model that took up the state of the first.
    assert found["saved_step"] == 1
    assert found["losses"] == pytest.approx(found["expected"], abs=1e-4)
    assert found["losses"][0] != pytest.approx(found["losses"][1], abs=1e-2)
    # What is saved is whole, and a run without shards takes it up.
    assert found["whole"]
    assert found["tied"]
    assert found["difference"] < 1e-4
    assert found["difference_alone"] < 1e-4
