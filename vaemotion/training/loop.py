"""The one training loop: accelerate, progress bar, JSON-lines log, exact resumption.

A step is a pure function of (configuration, step number): its data come from ``batches[step]``, its random numbers from a
generator seeded with the step. A resumed run therefore equals an uninterrupted one. The state on disk is safetensors
and JSON: ``accelerate``'s own ``save_state`` pickles the optimizer, and nothing here is ever unpickled.
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

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vaemotion.contract.errors import UserError
from vaemotion.training.config import Optimisation

STATE_FILE = "training_state.safetensors"


class TrainingError(UserError):
    """A training that cannot go on."""


Loss = Callable[[Any], tuple[Tensor, dict[str, float]]]


def seeded(*keys: int) -> torch.Generator:
    """A generator for these keys alone (sequence-seeded, so that neighbouring keys do not resemble each other)."""
    import numpy as np

    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)
    )


def learning_rate_factor(step: int, config: Optimisation) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _From(Dataset[Any]):
    """``batches`` from a step on."""

    def __init__(self, batches: Callable[[int], Any], start: int, stop: int) -> None:
        self.batches, self.start, self.stop = batches, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Any:
        return self.batches(self.start + index)


def _one_thread(_: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def fit(
    title: str,
    modules: Sequence[nn.Module],
    batches: Callable[[int], Any],
    loss: Loss,
    config: Optimisation,
    out: Path,
    *,
    seed: int,
    resume: bool,
    identity: str = "",
    stop_after: int | None = None,
) -> bool:
    """Train ``modules`` with ``loss(batches(step))`` for ``config.steps`` steps.

    ``batches`` may run in worker processes. State and log lie in ``out``; ``stop_after`` ends early, as an interruption
    would, and the return value says whether the training is complete. ``identity`` describes everything that the result
    depends on besides; a state that was written under another is refused.
    """
    accelerator = Accelerator(mixed_precision=config.precision)
    holder = nn.ModuleList(modules)
    parameters = [p for p in holder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_decay_groups(holder, config), lr=config.learning_rate, betas=(0.9, 0.95))
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        (out / STATE_FILE).unlink(missing_ok=True)
    start = min(load_state(out, holder, optimizer, identity), config.steps)
    log_file = out / "log.jsonl"
    _trim_log(log_file, start)
    optimizer = accelerator.prepare(optimizer)
    stop = min(config.steps, start + stop_after) if stop_after is not None else config.steps
    loader = DataLoader(
        _From(batches, start, stop), batch_size=None, num_workers=config.workers, worker_init_fn=_one_thread,
        prefetch_factor=4 if config.workers else None,
    )  # fmt: skip
    holder.train()
    with _progress(accelerator) as progress, log_file.open("a") as log:
        task = progress.add_task(title, total=config.steps, completed=start, loss=float("nan"))
        began = time.monotonic()
        for step, batch in enumerate(loader, start):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=seeded(seed, step)).item()))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, config)
            with accelerator.autocast():
                value, parts = loss(batch)
            if not torch.isfinite(value):
                raise TrainingError(
                    f"{title}: the loss is {value.item()} at step {step}; lower the learning rate"
                )
            accelerator.backward(value)
            accelerator.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(task, advance=1, loss=value.item())
            done = step + 1
            if done % config.log_every == 0 or done == stop:
                rate = (done - start) / (time.monotonic() - began)
                _log(log, {"step": done, "loss": value.item(), **parts, "steps_per_s": rate})
            if done % config.save_every == 0 or done == stop:
                save_state(out, holder, optimizer, done, identity)
    holder.eval()
    return stop >= config.steps


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


def _log(log: Any, record: dict[str, float]) -> None:
    log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}) + "\n")
    log.flush()


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
    tensors = {f"weight.{k}": p.detach().clone() for k, p in holder.named_parameters() if p.requires_grad}
    state = optimizer.state_dict()["state"]
    for index, moments in state.items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v).detach().clone() for k, v in moments.items()}
    temporary = out / (STATE_FILE + ".tmp")
    state_of = json.dumps(
        {"step": step, "identity": _digest(identity)}
    )  # one entry: safetensors does not order several
    save_file(tensors, temporary, metadata={"run": state_of})
    os.replace(temporary, out / STATE_FILE)


def weights_digest(module: nn.Module) -> str:
    """Hash of all weights, by which a stage recognises the frozen model that it began on."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
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
