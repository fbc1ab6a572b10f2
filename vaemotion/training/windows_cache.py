"""Windows of procedural works with their visual tokens, computed once for stages 1 and 2.

The base is frozen from here on, so the visual tokens of a window never change. They and the log-mel are
kept in one safetensors file beside the runs, named by a hash of everything that they depend on.

From version 2 of the front end on, a quarter of the windows holds less sound than fits, as a device gives
them after a start and of short files. A model of version 1 was trained without such windows.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from vaemotion.contract.front_end import ZERO_PADDING, FrontEnd
from vaemotion.data.art.art import Work, sample_work, work_seed
from vaemotion.data.art.windows import SPREAD_S, frames_at, window_log_mel
from vaemotion.model.checkpoint import write_tensors
from vaemotion.model.vaemotion_llm import VAEmotionLLM

# Of the windows, those of a stream that has just begun to hear.
FILLING_SHARE = 0.25


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
    front_end = asdict(model.config.front_end)
    identity = json.dumps([base_hash, front_end, FILLING_SHARE, split, count, seed])
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
        window = window_log_mel(work, now_s, front_end, heard_s(work, front_end, seed))
        log_mel.append(torch.from_numpy(window).half())  # (frames, mels)
    return torch.stack(visual), torch.stack(log_mel)


def heard_s(work: Work, front_end: FrontEnd, seed: int) -> float:
    """Draw the seconds of sound that a work's window holds: all that fits for most works."""
    rng = np.random.default_rng([seed, 15, work.seed])
    if front_end.version == ZERO_PADDING or rng.random() >= FILLING_SHARE:
        return math.inf
    windows = front_end.windows
    return float(rng.uniform(min(windows.audio_stride_s, windows.audio_window_s), windows.audio_window_s))
