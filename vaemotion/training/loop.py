"""The training loop of all stages: accelerate, progress bar, TensorBoard, JSON log, exact resumption.

Sample i is a pure function of (configuration, i). Step s consists of the samples [s · batch, (s + 1) ·
batch), however many processes share them. So a resumed run equals an uninterrupted one, and two processes
equal one. The state on disk is safetensors and JSON: ``accelerate``'s own ``save_state`` pickles the
optimizer, and nothing here is ever unpickled. It holds whole tensors, also where FSDP keeps a shard of each
parameter in each process, so a run may go on with or without it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader

from vaemotion.contract.errors import UserError
from vaemotion.contract.files import append_whole, write_whole
from vaemotion.model.checkpoint import write_tensors
from vaemotion.training.config import Optimisation

STATE_FILE = "training_state.safetensors"
LossTerms = dict[str, Tensor]  # scalars by name, for the log
# Names of torch.cpu.get_capabilities for products in bfloat16: x86 and Arm.
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


class TrainingError(UserError):
    """A training that cannot continue."""


@dataclass(frozen=True)
class TrainingRun:
    """One run of a stage: where its state lies, and how it continues an earlier one."""

    folder: Path  # of the state and the logs
    seed: int
    resume: bool  # continue from the newest state in the folder
    # Everything else that the result depends on. A state that was saved under another identity is refused.
    identity: str = ""
    stop_after: int | None = None  # steps after which the run ends early, as after an interruption


class Objective(nn.Module):
    """The loss of a stage: ``forward(batch)`` returns a scalar and its terms, for the log.

    ``frozen`` modules are used without being trained: they stay in evaluation mode.
    """

    def __init__(self, *frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen  # a tuple, so that they are registered only where they belong

    def train(self, mode: bool = True) -> Objective:
        """Set training mode for all but the frozen modules."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, batch: Any) -> tuple[Tensor, LossTerms]:
        """Compute the loss of a batch, a scalar, and its terms."""
        raise NotImplementedError


def seeded(*keys: int) -> torch.Generator:
    """Make a generator for these keys, seeded by their sequence: neighboring keys give unlike numbers."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)
    )


def learning_rate_factor(step: int, config: Optimisation) -> float:
    """Return the factor of the learning rate at a step: linear warm-up, then a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fit(
    title: str,
    objective: Objective,
    collate: Callable[[Sequence[int]], Any],
    config: Optimisation,
    run: TrainingRun,
) -> bool:
    """Minimize ``objective(collate(numbers))`` for ``config.steps`` steps of ``config.batch`` samples.

    ``collate`` may run in worker processes and gets the numbers of this process's share of a batch. Returns
    True when the training is complete, False when ``run.stop_after`` ended it. Start several processes with
    ``accelerate launch`` or ``torchrun``. Raises TrainingError for a batch that the processes cannot share,
    a state of another identity, a loss that is not finite, or FSDP that accelerate would leave out.
    """
    accelerator = _accelerator(config, run.folder)
    if precision_here(config.precision) != config.precision and accelerator.is_main_process:
        print(f"{title}: this processor has no {config.precision}; training in float32")
    _check_fsdp(title, accelerator)
    micro = _micro_batch(title, config, accelerator.num_processes)
    optimizer = torch.optim.AdamW(
        _decay_groups(objective, config), lr=config.learning_rate, betas=(0.9, 0.95)
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.resume and accelerator.is_main_process:
        (run.folder / STATE_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    start = min(saved_step(run.folder, run.identity), config.steps)
    stop = config.steps if run.stop_after is None else min(config.steps, start + run.stop_after)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: learning_rate_factor(start + k, config))
    numbers = range(start * config.batch, stop * config.batch)
    loader = _loader(numbers, collate, micro, config.workers)
    prepared, optimizer, schedule, loader = accelerator.prepare(objective, optimizer, schedule, loader)
    load_state(run.folder, objective, optimizer.optimizer)  # after FSDP has taken its shards
    prepared.train()
    with _progress(accelerator) as progress, _Log(accelerator, run.folder, start) as log:
        task = progress.add_task(title, total=config.steps, completed=start, loss=float("nan"), pace="")
        pace = _Pace(start, config.batch)
        for number, batch in enumerate(pace.waiting_for(loader)):
            step = start + number // config.accumulate
            micro_step = number % config.accumulate
            torch.manual_seed(_noise_seed(run.seed, step, micro_step, accelerator.process_index))
            with accelerator.accumulate(prepared):
                loss, terms = prepared(batch)  # scalars
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"{title}: the loss is {loss.item()} at step {step}; lower the learning rate"
                    )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(objective.parameters(), config.clip_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            done = step + 1
            progress.update(task, advance=1, loss=loss.item())
            if done % config.log_every == 0 or done == stop:
                figures = pace.figures(done)
                log.write(done, {"loss": loss.detach(), **terms}, figures)
                words = f"{figures['clips_per_s']:.1f} clips/s, {figures['data_wait']:.0%} waiting for data"
                progress.update(task, pace=words)
            if done % config.save_every == 0 or done == stop:
                save_state(
                    run.folder, objective, optimizer, done, run.identity, write=accelerator.is_main_process
                )
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    gather(objective)
    objective.to("cpu").eval()
    return stop >= config.steps


def process_state() -> PartialState:
    """Return this process's place among those that train together; without a GPU they communicate by gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def _accelerator(config: Optimisation, out: Path) -> Accelerator:
    AcceleratorState._reset_state()  # the last stage of this process may have had another precision
    # A step that leaves a path out gives its weights no gradient, hence find_unused_parameters.
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=precision_here(config.precision),
        gradient_accumulation_steps=config.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def precision_here(precision: str) -> str:
    """Return the precision to train in: "no" for bf16 on a processor without it, where it is emulated.

    Emulated, six steps took 275 s of processor time instead of 25 s (docs/log.md).
    """
    if precision != "bf16" or torch.cuda.is_available():
        return precision
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if any(capabilities.get(name, False) for name in _BF16) else "no"


def _check_fsdp(title: str, accelerator: Accelerator) -> None:
    """Raise TrainingError where a run asks for FSDP that accelerate would replace by whole copies."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if accelerator.distributed_type != DistributedType.FSDP:
        what = f"{accelerator.num_processes} process(es) on the {accelerator.device.type}"
        raise TrainingError(
            f"{title}: FSDP was asked for (accelerate launch --use_fsdp), but for {what} accelerate keeps a "
            "whole copy of the model in each process; start several processes on GPUs, or leave FSDP out"
        )
    if not accelerator.is_fsdp2:
        raise TrainingError(
            f"{title}: FSDP version 1 joins the frozen parameters with the trained ones; "
            "give accelerate launch --fsdp_version 2"
        )


def _loader(
    numbers: range, collate: Callable[[Sequence[int]], Any], batch_size: int, workers: int
) -> DataLoader[Any]:
    """Load the samples of these numbers in order, in worker processes or in this one."""
    if workers:
        # Before they start: a fork inherits OpenCV's pool without its threads, and would wait for them.
        cv2.setNumThreads(1)
    return DataLoader(
        numbers,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _micro_batch(title: str, config: Optimisation, processes: int) -> int:
    """Return the number of samples of all processes between two backward passes."""
    if config.batch % (config.accumulate * processes):
        raise TrainingError(
            f"{title}: a batch of {config.batch} cannot be shared by {processes} processes with "
            f"{config.accumulate} accumulated passes; set optimisation.batch to a multiple of "
            f"{config.accumulate * processes}"
        )
    return config.batch // config.accumulate


def _noise_seed(*keys: int) -> int:
    return int(torch.randint(2**62, (1,), generator=seeded(*keys)).item())


def _decay_groups(holder: nn.Module, config: Optimisation) -> list[dict[str, Any]]:
    """Group the trained parameters: weight decay for matrices, none for vectors and scalars."""
    trained = [p for p in holder.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _progress(accelerator: Accelerator) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[pace]}"),
    )
    return Progress(*columns, disable=not accelerator.is_main_process)


class _Pace:
    """Steps and clips a second, and the share of time spent waiting for data, since the last figures."""

    def __init__(self, step: int, batch: int) -> None:
        self.step, self.batch = step, batch
        self.since_s, self.waited_s = time.monotonic(), 0.0

    def waiting_for(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the loader's batches; the time until each of them is there counts as waiting."""
        batches = iter(loader)
        while True:
            began_s = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited_s += time.monotonic() - began_s
            yield batch

    def figures(self, step: int) -> dict[str, float]:
        """Return the figures up to ``step``, and begin again. Clips are those of all processes together."""
        now_s = time.monotonic()
        elapsed_s = max(now_s - self.since_s, 1e-9)
        steps_per_s, waiting = (step - self.step) / elapsed_s, self.waited_s / elapsed_s
        self.step, self.since_s, self.waited_s = step, now_s, 0.0
        return {"steps_per_s": steps_per_s, "clips_per_s": steps_per_s * self.batch, "data_wait": waiting}


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
        # Not accelerator.end_training(), which would take the process group from the next stage.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def write(self, step: int, terms: LossTerms, pace: dict[str, float]) -> None:
        device = self.accelerator.device
        figures = terms | {name: torch.tensor(value, device=device) for name, value in pace.items()}
        means: Any = self.accelerator.reduce({k: v.detach().float() for k, v in figures.items()}, "mean")
        values = {key: round(float(value), 3 if key in pace else 6) for key, value in means.items()}
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            line = json.dumps({"step": step, **values}) + "\n"
            with self.file.open("ab", buffering=0) as log:
                append_whole(log.fileno(), line.encode())


def _trim_log(log_file: Path, start: int) -> None:
    """Drop the lines after the last saved state of an interrupted run: the log has every step once."""
    if not log_file.exists():
        return
    kept: list[str] = []
    for line in log_file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # a line cut off by the interruption
    write_whole(log_file, "".join(kept))


def save_state(
    out: Path, holder: nn.Module, optimizer: Any, step: int, identity: str = "", *, write: bool = True
) -> None:
    """Save the trained weights and the optimizer's moments atomically.

    With FSDP every process has to call it, because all of them give their shards; one of them writes.
    """
    trained = [(name, p) for name, p in holder.named_parameters() if p.requires_grad]
    tensors = {f"weight.{name}": whole(p) for name, p in trained}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": whole(torch.as_tensor(v)) for k, v in moments.items()}
    if not write:
        return
    # A single entry, because safetensors does not keep the order of several.
    metadata = {"run": json.dumps({"step": step, "identity": _digest(identity)})}
    write_tensors(out / STATE_FILE, {k: v.cpu().clone() for k, v in tensors.items()}, metadata)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor without its gradient; of one that is sharded, every process gets all of it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def gather(holder: nn.Module) -> None:
    """Replace sharded parameters by whole ones on the CPU, in every process, so that they can be saved.

    A module that was sharded is not to be called again.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}  # a parameter that two modules share stays one
    for module in holder.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if isinstance(parameter, DTensor):
                if parameter not in made:
                    made[parameter] = nn.Parameter(whole(parameter).cpu(), parameter.requires_grad)
                module._parameters[name] = made[parameter]


def weights_digest(module: nn.Module) -> str:
    """Hash all weights, by which a stage recognizes the frozen model that it started on."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def saved_step(out: Path, identity: str = "") -> int:
    """Return the next step of the state in a folder; 0 without a state.

    Raises TrainingError for a state of another identity.
    """
    file = out / STATE_FILE
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["run"])
    if metadata["identity"] != _digest(identity):
        raise TrainingError(
            f"{file} was written with another configuration or other data; give the configuration that it "
            f"was started with, or start again with --no-resume"
        )
    return int(metadata["step"])


@torch.no_grad()
def load_state(out: Path, holder: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore what ``save_state`` wrote, if anything; of sharded parameters each process takes its shard."""
    file = out / STATE_FILE
    if not file.exists():
        return
    tensors = load_file(file)
    for key, parameter in holder.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(_placed(tensors[f"weight.{key}"], parameter))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            # A count of steps has no shape, and stays whole.
            placed = _placed(tensor, trained[int(index)]) if tensor.ndim else tensor
            state.setdefault(int(index), {})[name] = placed
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor as a parameter of its shape is kept: sharded, or as it is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
