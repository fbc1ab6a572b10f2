"""Windows of procedural works with their visual tokens, computed once for stages 1 and 2.

The base is frozen from here on, so what it sees in a window never changes: visual tokens (float16) and log-mel are kept in
one safetensors file beside the runs, named by everything that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from vaemotion.contract.front_end import FrontEnd, audio_window
from vaemotion.data.procedural_art import Work, sample_work, synthesise, work_seed
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.base_vlm import frames_at

SPREAD_S = 1.1  # a window's moment lies within this long after the first at which it has all its pictures


@dataclass(frozen=True)
class WindowCache:
    """``visual`` (n, frames, T, D) float16, oldest picture first; ``log_mel`` (n, frames, mels) float16, normalised."""

    works: tuple[Work, ...]
    visual: Tensor
    log_mel: Tensor


def cached_windows(
    model: VAEmotionLLM, base_hash: str, split: str, count: int, seed: int, folder: Path
) -> WindowCache:
    """``count`` windows of the split's first works, one each. ``base_hash`` identifies the base's weights."""
    works = tuple(sample_work(work_seed(split, index)) for index in range(count))
    identity = json.dumps([base_hash, asdict(model.config.front_end), split, count, seed])
    file = folder / f"windows-{split}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        visual, log_mel = _compute(model, works, seed)
        temporary = file.with_suffix(".tmp")
        save_file({"visual": visual, "log_mel": log_mel}, temporary)
        os.replace(temporary, file)
    tensors = load_file(file)
    return WindowCache(works, tensors["visual"], tensors["log_mel"])


@torch.no_grad()
def _compute(model: VAEmotionLLM, works: tuple[Work, ...], seed: int) -> tuple[Tensor, Tensor]:
    front_end = model.config.front_end
    earliest_s = front_end.windows.visual_window_s + 0.1
    model.eval()
    visual: list[Tensor] = []
    log_mel: list[Tensor] = []
    for work in track(works, "windows"):
        now_s = float(np.random.default_rng([seed, 2, work.seed]).uniform(earliest_s, earliest_s + SPREAD_S))
        pixels = frames_at(work, now_s, front_end.windows.frames, front_end)  # (frames, 3, side, side)
        visual.append(model.vision(pixels).half())
        log_mel.append(torch.from_numpy(window_log_mel(work, now_s, front_end)).half())
    return torch.stack(visual), torch.stack(log_mel)


def window_log_mel(work: Work, now_s: float, front_end: FrontEnd) -> np.ndarray:
    """The work's normalised log-mel window at ``now_s``, (frames, mels)."""
    return audio_window(synthesise(work, now_s), now_s, front_end)
