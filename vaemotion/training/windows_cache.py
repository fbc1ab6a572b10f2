"""Windows of procedural works with their visual tokens, computed once for stages 1 and 2.

The base is frozen from here on, so the visual tokens of a window never change. They and the log-mel are
kept in one safetensors file beside the runs, named by a hash of everything that they depend on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from vaemotion.data.art.art import Work, sample_work, work_seed
from vaemotion.data.art.windows import SPREAD_S, frames_at, window_log_mel
from vaemotion.model.checkpoint import write_tensors
from vaemotion.model.vaemotion_llm import VAEmotionLLM


@dataclass(frozen=True)
class WindowCache:
    """One window of each work, n of them."""

    works: tuple[Work, ...]
    visual: Tensor  # (n, frames, T, D) float16 tokens, oldest frame first
    log_mel: Tensor  # (n, frames, mels) float16, normalized


def cached_windows(
    model: VAEmotionLLM, base_hash: str, split: str, count: int, seed: int, folder: Path
) -> WindowCache:
    """Read or compute the windows of a split's first ``count`` works.

    ``base_hash`` identifies the base's weights; ``folder`` holds the file.
    """
    works = tuple(sample_work(work_seed(split, index)) for index in range(count))
    identity = json.dumps([base_hash, asdict(model.config.front_end), split, count, seed])
    file = folder / f"windows-{split}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        visual, log_mel = _compute(model, works, seed)
        write_tensors(file, {"visual": visual, "log_mel": log_mel})
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
        frames = frames_at(work, now_s, front_end.windows.frames, front_end)
        pixels = torch.from_numpy(frames)  # (frames, 3, side, side)
        visual.append(model.vision(pixels).half())  # (frames, T, D)
        log_mel.append(torch.from_numpy(window_log_mel(work, now_s, front_end)).half())  # (frames, mels)
    return torch.stack(visual), torch.stack(log_mel)
