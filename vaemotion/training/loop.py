"""The one training loop: accelerate, progress bar, TensorBoard and JSON-lines logs, exact resumption.

Sample i is a pure function of (configuration, i), and step s consists of the samples [s · batch, (s + 1) · batch), however
many processes share them: a resumed run equals an uninterrupted one, and two processes equal one. The state on disk is
safetensors and JSON: ``accelerate``'s own ``save_state`` pickles the optimizer, and nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vaemotion.contract.errors import UserError
from vaemotion.training.config import Optimisation

STATE_FILE = "training_state.safetensors"
Parts = dict[str, Tensor]


class TrainingError(UserError):
    """A training that cannot go on."""


class Objective(nn.Module):
    """What a stage minimises: ``forward(batch)`` returns the loss and its parts, for the log.

    ``frozen`` parts take part without being trained: they stay in evaluation mode.
    """

    def __init__(self, *frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen  # a tuple: these modules are registered where they belong

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, batch: Any) -> tuple[Tensor, Parts]:
        raise NotImplementedError


def seeded(*keys: int) -> torch.Generator:
    """A generator for these keys alone (sequence-seeded, so that neighbouring keys do not resemble each other)."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)
    )


def learning_rate_factor(step: int, config: Optimisation) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def fit(
    title: str,
    objective: Objective,
    collate: Callable[[Sequence[int]], Any],
    config: Optimisation,
    out: Path,
    *,
    seed: int,
    resume: bool,
    identity: str = "",
    stop_after: int | None = None,
) -> bool:
    """Minimise ``objective(collate(sample numbers))`` for ``config.steps`` steps of ``config.batch`` samples.

    ``collate`` may run in worker processes, and gets the numbers of this process's share of a batch. State and logs lie in
    ``out``; ``stop_after`` ends early, as an interruption would, and the return value says whether the training is complete.
    ``identity`` describes everything that the result depends on besides; a state that was written under another is refused.
    Start several processes with ``accelerate launch`` or ``torchrun``.
    """
    accelerator = _accelerator(config, out)
    micro = _micro_batch(title, config, accelerator.num_processes)
    optimizer = torch.optim.AdamW(
        _decay_groups(objective, config), lr=config.learning_rate, betas=(0.9, 0.95)
    )
    out.mkdir(parents=True, exist_ok=True)
    if not resume and accelerator.is_main_process:
        (out / STATE_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    start = min(load_state(out, objective, optimizer, identity), config.steps)
    stop = min(config.steps, start + stop_after) if stop_after is not None else config.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: learning_rate_factor(start + k, config))
    if config.workers:  # here and not in them: a fork inherits OpenCV's pool without its threads, and would wait for them for ever
        cv2.setNumThreads(1)
    loader = DataLoader(
        range(start * config.batch, stop * config.batch), batch_size=micro, collate_fn=collate,  # type: ignore[arg-type]
        num_workers=config.workers, worker_init_fn=_one_thread, prefetch_factor=4 if config.workers else None,
    )  # fmt: skip
    prepared, optimizer, schedule, loader = accelerator.prepare(objective, optimizer, schedule, loader)
    prepared.train()
    with _progress(accelerator) as progress, _Log(accelerator, out, start) as log:
        task = progress.add_task(title, total=config.steps, completed=start, loss=float("nan"))
        began = time.monotonic()
        for number, batch in enumerate(loader):
            step = start + number // config.accumulate
            torch.manual_seed(_noise_seed(seed, step, number % config.accumulate, accelerator.process_index))
            with accelerator.accumulate(prepared):
                value, parts = prepared(batch)
                if not torch.isfinite(value):
                    raise TrainingError(
                        f"{title}: the loss is {value.item()} at step {step}; lower the learning rate"
                    )
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(objective.parameters(), config.clip_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            done = step + 1
            progress.update(task, advance=1, loss=value.item())
            if done % config.log_every == 0 or done == stop:
                rate = (done - start) / (time.monotonic() - began)
                log.write(done, {"loss": value.detach(), **parts}, rate)
            if (done % config.save_every == 0 or done == stop) and accelerator.is_main_process:
                save_state(out, objective, optimizer, done, identity)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    objective.to("cpu").eval()
    return stop >= config.steps


def process() -> PartialState:
    """This process among those that train together; without a GPU they talk through gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def _accelerator(config: Optimisation, out: Path) -> Accelerator:
    AcceleratorState._reset_state()  # the last stage of this process may have had another precision
    # A step in which a path is not asked leaves its weights without gradient.
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _micro_batch(title: str, config: Optimisation, processes: int) -> int:
    """Samples of all processes between two backward passes."""
    if config.batch % (config.accumulate * processes):
        raise TrainingError(
            f"{title}: a batch of {config.batch} cannot be shared by {processes} processes with {config.accumulate} "
            f"accumulated passes; set optimisation.batch to a multiple of {config.accumulate * processes}"
        )
    return config.batch // config.accumulate


def _noise_seed(*keys: int) -> int:
    return int(torch.randint(2**62, (1,), generator=seeded(*keys)).item())


def _decay_groups(holder: nn.Module, config: Optimisation) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for vectors and scalars."""
    trained = [p for p in holder.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _progress(accelerator: Accelerator) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )  # fmt: skip
    return Progress(*columns, disable=not accelerator.is_main_process)


class _Log:
    """``log.jsonl`` and TensorBoard, written by the main process; figures are means over the processes."""

    def __init__(self, accelerator: Accelerator, out: Path, start: int) -> None:
        self.accelerator, self.file = accelerator, out / "log.jsonl"
        if accelerator.is_main_process:
            _trim_log(self.file, start)

    def __enter__(self) -> _Log:
        self.accelerator.init_trackers("tensorboard")
        return self

    def __exit__(self, *_: object) -> None:
        for (
            tracker
        ) in self.accelerator.trackers:  # end_training would take the process group from the next stage
            tracker.finish()

    def write(self, step: int, figures: Parts, steps_per_s: float) -> None:
        means: Any = self.accelerator.reduce({k: v.detach().float() for k, v in figures.items()}, "mean")
        values = {key: round(float(value), 6) for key, value in means.items()}
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.file.open("a") as log:
                log.write(json.dumps({"step": step, **values, "steps_per_s": round(steps_per_s, 3)}) + "\n")


def _trim_log(log_file: Path, start: int) -> None:
    """Drop what an interrupted run logged after its last saved state, so that the log never has a step twice."""
    if not log_file.exists():
        return
    kept: list[str] = []
    for line in log_file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # a line cut off by the interruption
    log_file.write_text("".join(kept))


def save_state(out: Path, holder: nn.Module, optimizer: Any, step: int, identity: str = "") -> None:
    """Trainable weights and the optimizer's moments, atomically."""
    tensors = {
        f"weight.{k}": p.detach().cpu().clone() for k, p in holder.named_parameters() if p.requires_grad
    }
    state = optimizer.state_dict()["state"]
    for index, moments in state.items():
        tensors |= {
            f"optimizer.{index}.{k}": torch.as_tensor(v).detach().cpu().clone() for k, v in moments.items()
        }
    temporary = out / (STATE_FILE + ".tmp")
    # one entry: safetensors does not order several
    state_of = json.dumps({"step": step, "identity": _digest(identity)})
    save_file(tensors, temporary, metadata={"run": state_of})
    os.replace(temporary, out / STATE_FILE)


def weights_digest(module: nn.Module) -> str:
    """Hash of all weights, by which a stage recognises the frozen model that it began on."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def load_state(out: Path, holder: nn.Module, optimizer: torch.optim.Optimizer, identity: str = "") -> int:
    """Restore what ``save_state`` wrote; returns the step to go on from, 0 when there is nothing."""
    file = out / STATE_FILE
    if not file.exists():
        return 0
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["run"])
    if metadata["identity"] != _digest(identity):
        raise TrainingError(
            f"{file} was written under another configuration or on other data; give the configuration that it began "
            f"with, or start again with --no-resume"
        )
    step = int(metadata["step"])
    tensors = load_file(file)
    with torch.no_grad():
        for key, parameter in holder.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"weight.{key}"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step
