"""The part of one of several processes in the tests of ``test_processes``, for ``torchrun``.

python -m tests.vaemotion.training.ranks fit|sharded OUT [resume] [kill]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from tests.tiny import tiny_model
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import Optimisation
from vaemotion.training.loop import (
    LossTerms,
    Objective,
    TrainingRun,
    fit,
    gather,
    load_state,
    process_state,
    save_state,
    saved_step,
    seeded,
)

KILLED_AT = 24  # number of the sample that ends process 1
SIX_STEPS = Optimisation(steps=6, batch=8, learning_rate=1e-2, save_every=2, log_every=1, workers=0)


class Heard(Objective):
    """Next-token loss of the frozen language model on the tokens of the trained audio pathway."""

    def __init__(self, model: VAEmotionLLM) -> None:
        super().__init__(model.base)
        model.requires_grad_(False)
        model.audio_pathway.requires_grad_(True)
        self.model = model

    def forward(self, batch: Tensor) -> tuple[Tensor, LossTerms]:
        tokens = self.model.audio_pathway(batch)  # (B, N_a, D)
        hidden = self.model.backbone.decoder(inputs_embeds=tokens).last_hidden_state
        logits = self.model.backbone.head(hidden)  # (B, N_a, vocab)
        targets = torch.arange(logits.shape[1]).expand(len(logits), -1)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss, {"part": loss}


def sounds(numbers: Sequence[int]) -> Tensor:
    """Return one log-mel of noise per number, (n, frames, mels)."""
    front_end = tiny_model().config.front_end
    shape = (front_end.audio_window_frames, front_end.log_mel.n_mels)
    return torch.stack([torch.randn(shape, generator=seeded(7, number)) for number in numbers])


def sounds_until_killed(numbers: Sequence[int]) -> Tensor:
    if process_state().process_index == 1 and max(numbers) >= KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return sounds(numbers)


def train(out: Path, *words: str) -> None:
    objective = Heard(tiny_model(adapter=False))
    run = TrainingRun(out, seed=3, resume="resume" in words)
    fit("test", objective, sounds_until_killed if "kill" in words else sounds, SIX_STEPS, run)


def sharded(model: VAEmotionLLM) -> Heard:
    """Return an objective whose parameters are shared out among all processes, layer by layer."""
    objective, mesh = Heard(model), init_device_mesh("cpu", (process_state().num_processes,))
    for layer in model.backbone.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    # A large eps: gradients near 0 would otherwise make steps of either sign out of rounding errors.
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2, eps=1e-3)


def step(objective: Objective, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    loss, _ = objective.train()(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def differences(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def compare_sharded(out: Path) -> None:
    """Take two steps sharded and two on one whole copy, with a save and a restart between them."""
    state = process_state()
    rank, n = state.process_index, state.num_processes
    batches = [sounds(range(8 * k, 8 * k + 8)) for k in range(2)]
    reference = Heard(tiny_model(adapter=False))
    reference_optimizer = optimizer_of(reference)
    expected = [step(reference, reference_optimizer, batch) for batch in batches]

    found: dict[str, Any] = {"losses": [], "expected": expected}
    for k, batch in enumerate(batches):  # each in a new model, as after a restart
        objective = sharded(tiny_model(adapter=False, seed=k))
        optimizer = optimizer_of(objective)
        if k == 0:
            parameters = list(objective.parameters())
            found["dtensors"] = sum(isinstance(p, DTensor) for p in parameters)
            found["parameters"] = len(parameters)
            found["share"] = sum(p.to_local().numel() for p in parameters) / sum(
                p.numel() for p in parameters
            )
        else:
            load_base(objective, tiny_model(adapter=False))
            load_state(out, objective, optimizer)
            found["saved_step"] = saved_step(out, "run")
        mean = torch.tensor(step(objective, optimizer, batch[rank::n]))
        torch.distributed.all_reduce(mean)
        found["losses"].append(mean.item() / n)
        save_state(out, objective, optimizer, k + 1, "run", write=state.is_main_process)
        torch.distributed.barrier()
    gather(objective)
    found["whole"] = not any(isinstance(p, DTensor) for p in objective.parameters())
    found["tied"] = tied(objective.model) == tied(reference.model)
    found["difference"] = differences(objective, reference)
    # The state is the same without shards.
    alone = Heard(tiny_model(adapter=False))
    load_state(out, alone, optimizer_of(alone))
    found["difference_alone"] = differences(alone, reference)
    if state.is_main_process:
        (out / "found.json").write_text(json.dumps(found))


@torch.no_grad()
def load_base(objective: Heard, source: VAEmotionLLM) -> None:
    """Give a sharded model the frozen weights of another."""
    from torch.distributed.tensor import distribute_tensor

    for parameter, value in zip(objective.model.parameters(), source.parameters(), strict=True):
        parameter.copy_(distribute_tensor(value.detach(), parameter.device_mesh, parameter.placements))


def tied(model: VAEmotionLLM) -> bool:
    return model.backbone.tied


def main(task: str, out: str, *words: str) -> None:
    process_state()
    if task == "fit":
        train(Path(out), *words)
    else:
        compare_sharded(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
