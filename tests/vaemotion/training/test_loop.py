"""The training loop: an interrupted run that is resumed equals an uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaemotion.contract.errors import UserError
from vaemotion.training import loop
from vaemotion.training.config import Optimisation
from vaemotion.training.loop import STATE_FILE, Objective, TrainingRun, fit, learning_rate_factor, seeded

PACE = ("steps_per_s", "clips_per_s", "data_wait")  # differ from run to run
SIX_STEPS = Optimisation(
    steps=6,
    batch=4,
    learning_rate=1e-2,
    weight_decay=0.1,
    warmup_steps=2,
    save_every=3,
    log_every=1,
    workers=0,
)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(16), nn.Linear(16, 2))


class Given(Objective):
    """A module with the loss of a test."""

    def __init__(self, module: nn.Module, loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]]) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)


def samples(numbers: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(8, generator=seeded(7, number)) for number in numbers])


def batch_of(step: int) -> Tensor:
    return samples(range(4 * step, 4 * step + 4))


def train(
    out: Path,
    module: nn.Module,
    config: Optimisation = SIX_STEPS,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    seed: int = 3,
) -> bool:
    def loss(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # random in the loss as well as in dropout
        value = ((module(batch) - 1 + 0.1 * torch.randn(len(batch), 2)) ** 2).mean()
        return value, {"part": value}

    run = TrainingRun(out, seed, resume, stop_after=stop_after)
    return fit("test", Given(module, loss), samples, config, run)


BESIDE_OPENCV = """
import sys; from dataclasses import replace; from pathlib import Path
import cv2, numpy as np, torch
from vaemotion.training import loop
from vaemotion.training.config import Optimisation
from vaemotion.training.loop import Objective, TrainingRun, fit

class Square(Objective):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
    def forward(self, batch):
        return (self.weight * batch).square().mean(), {}

def drawn(numbers):
    frame = cv2.GaussianBlur(np.full((1080, 1920, 3), 9, np.uint8), (31, 31), 5)  # large enough for threads
    return torch.full((len(numbers),), float(frame.mean()))

cv2.setNumThreads(2)
drawn([0])
config = Optimisation(steps=2, batch=2, learning_rate=1e-2, workers=1)
assert fit("test", Square(), drawn, config, TrainingRun(Path(sys.argv[1]), seed=3, resume=False))
"""


def test_workers_start_where_opencv_has_threads_already(tmp_path: Path) -> None:
    """A worker that inherits OpenCV's pool without its threads would wait for them for ever."""
    subprocess.run([sys.executable, "-c", BESIDE_OPENCV, str(tmp_path)], check=True, timeout=180)


def log_of(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in PACE} for record in records]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("stop_after", [3, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, workers: int, stop_after: int
) -> None:
    config = replace(SIX_STEPS, workers=workers)
    whole, halves = network(), network()
    assert train(tmp_path / "whole", whole, config)
    assert not train(tmp_path / "halves", halves, config, stop_after=stop_after)
    torch.manual_seed(12345)  # the process's random state in between does not matter
    halves = network()  # a new process: everything comes from the folder
    assert train(tmp_path / "halves", halves, config, resume=True)
    assert equal(whole, halves)
    assert not equal(whole, network())
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "halves")
    states = [(tmp_path / run / STATE_FILE).read_bytes() for run in ("whole", "halves")]
    assert states[0] == states[1]


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        module = network()
        train(tmp_path / str(workers), module, replace(SIX_STEPS, workers=workers))
        results.append(module)
    assert equal(*results)


def test_dropout_and_noise_differ_from_step_to_step_and_with_the_seed(tmp_path: Path) -> None:
    same = replace(SIX_STEPS, learning_rate=0.0, weight_decay=0.0)
    module = network()

    def loss(_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return module(torch.ones(4, 8)).square().mean(), {}

    runs = []
    for seed in (1, 1, 2):
        fit("test", Given(module, loss), samples, same, TrainingRun(tmp_path / "x", seed, resume=False))
        runs.append([record["loss"] for record in log_of(tmp_path / "x")])
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == 6


def test_the_log_has_every_step_once_after_a_crash_between_two_saves(tmp_path: Path) -> None:
    whole = network()
    train(tmp_path / "whole", whole)
    config, crashed = replace(SIX_STEPS, save_every=2), network()

    def loss(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if torch.equal(batch, batch_of(3)):
            raise KeyboardInterrupt
        value = ((crashed(batch) - 1 + 0.1 * torch.randn(4, 2)) ** 2).mean()
        return value, {"part": value}

    run = TrainingRun(tmp_path / "crashed", seed=3, resume=False)
    with pytest.raises(KeyboardInterrupt):  # after step 3, while the newest state is that of step 2
        fit("test", Given(crashed, loss), samples, config, run)
    assert [record["step"] for record in log_of(tmp_path / "crashed")] == [1, 2, 3]
    with (tmp_path / "crashed" / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # the power failed while it was written
    resumed = network()
    assert train(tmp_path / "crashed", resumed, config, resume=True)
    assert log_of(tmp_path / "crashed") == log_of(tmp_path / "whole")
    assert equal(resumed, whole)


def test_the_log_tells_the_clips_a_second_and_the_share_of_time_spent_waiting_for_data(
    tmp_path: Path,
) -> None:
    def slow(numbers: Sequence[int]) -> Tensor:
        time.sleep(0.05)
        return samples(numbers)

    shares = []
    for name, collate in (("slow", slow), ("quick", samples)):
        module = network()

        def loss(batch: Tensor, module: nn.Module = module) -> tuple[Tensor, dict[str, Tensor]]:
            return module(batch).square().mean(), {}

        config = replace(SIX_STEPS, log_every=3)
        fit("test", Given(module, loss), collate, config, TrainingRun(tmp_path / name, seed=3, resume=False))
        records = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == [3, 6]
        for record in records:
            assert record["clips_per_s"] == pytest.approx(SIX_STEPS.batch * record["steps_per_s"], rel=0.01)
            assert 0 <= record["data_wait"] <= 1
        shares.append(records[1]["data_wait"])
    assert shares[0] > shares[1]


def test_a_run_that_asks_for_fsdp_and_would_not_get_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"test: FSDP was asked for .* leave FSDP out") as stopped:
        train(tmp_path, network())
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_run_from_the_start_begins_a_new_log(tmp_path: Path) -> None:
    train(tmp_path, network())
    train(tmp_path, network())
    assert [record["step"] for record in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_from_the_start_forgets_an_earlier_runs_state(tmp_path: Path) -> None:
    """Otherwise an interruption before its first save would continue the earlier run."""
    train(tmp_path, network(), seed=1)
    objective = Given(network(), lambda _: (torch.zeros(()), {}))
    with pytest.raises(KeyboardInterrupt):
        fit("test", objective, interrupted, SIX_STEPS, TrainingRun(tmp_path, seed=2, resume=False))
    resumed, expected = network(), network()
    train(tmp_path, resumed, seed=2, resume=True)
    train(tmp_path / "expected", expected, seed=2)
    assert equal(resumed, expected)


def interrupted(_: Sequence[int]) -> Tensor:
    raise KeyboardInterrupt


def test_resuming_a_complete_run_changes_nothing(tmp_path: Path) -> None:
    done, again = network(), network()
    train(tmp_path, done)
    log = (tmp_path / "log.jsonl").read_text()
    assert train(tmp_path, again, resume=True)
    assert equal(done, again)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_resuming_with_fewer_steps_than_were_made_is_complete_or_refused_with_the_number(
    tmp_path: Path,
) -> None:
    train(tmp_path, network())
    try:
        assert train(tmp_path, network(), replace(SIX_STEPS, steps=4), resume=True)
    except UserError as refusal:
        assert "4" in str(refusal)  # noqa: PT017


def test_resuming_where_nothing_was_saved_starts_at_0(tmp_path: Path) -> None:
    fresh, resumed = network(), network()
    train(tmp_path / "a", fresh)
    train(tmp_path / "b", resumed, resume=True)
    assert equal(fresh, resumed)


def test_the_folder_holds_safetensors_and_json_lines_and_no_pickle(tmp_path: Path) -> None:
    train(tmp_path, network())
    files = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(f for f in files if not f.startswith("tensorboard/")) == ["log.jsonl", STATE_FILE]
    assert any("events.out.tfevents" in f for f in files)
    header = int.from_bytes((tmp_path / STATE_FILE).read_bytes()[:8], "little")
    run = json.loads((tmp_path / STATE_FILE).read_bytes()[8 : 8 + header])["__metadata__"]["run"]
    assert json.loads(run)["step"] == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_way_out(tmp_path: Path, bad: float) -> None:
    module = network()

    def loss(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value = module(batch).mean()
        return (value * bad if torch.equal(batch, batch_of(4)) else value), {}

    with pytest.raises(
        Exception, match=r"test: the loss is .* at step 4; lower the learning rate"
    ) as stopped:
        fit("test", Given(module, loss), samples, SIX_STEPS, TrainingRun(tmp_path, seed=3, resume=False))
    assert isinstance(stopped.value, UserError)  # one sentence at the command line, no traceback
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_only_parameters_that_require_a_gradient_are_trained_and_stored(tmp_path: Path) -> None:
    module = network()
    module[0].requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    train(tmp_path, module)
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"3.weight", "3.bias", "4.weight", "4.bias"}
    assert not module.training


def test_vectors_do_not_decay(tmp_path: Path) -> None:
    module = nn.LayerNorm(8)
    matrix = nn.Linear(8, 8, bias=False)
    before = module.weight.detach().clone(), matrix.weight.detach().clone()
    holder = nn.ModuleList([module, matrix])

    def loss(_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return 0.0 * (module.weight.sum() + module.bias.sum() + matrix.weight.sum()), {}

    fit("test", Given(holder, loss), samples, SIX_STEPS, TrainingRun(tmp_path, seed=0, resume=False))
    assert torch.equal(module.weight, before[0])
    assert (matrix.weight.abs() < before[1].abs()).all()


def test_the_learning_rate_warms_up_and_falls_to_0_as_a_cosine() -> None:
    config = replace(SIX_STEPS, steps=100, warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert max(factors) == pytest.approx(1)
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-9)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_neighbouring_seeds_draw_unlike_numbers() -> None:
    draws = torch.stack([torch.randn(1000, generator=seeded(0, step)) for step in range(20)])
    assert (torch.corrcoef(draws) - torch.eye(20)).abs().max() < 0.15
    assert torch.equal(torch.randn(3, generator=seeded(0, 1)), torch.randn(3, generator=seeded(0, 1)))
    assert not torch.equal(torch.randn(3, generator=seeded(0, 1)), torch.randn(3, generator=seeded(1, 0)))


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx2": True}, "no"),
        ({"amx_bf16": False}, "no"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),
    ],
)
def test_bfloat16_is_used_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert loop.precision_here("bf16") == precision
    assert loop.precision_here("no") == "no"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loop.precision_here("bf16") == "bf16"
