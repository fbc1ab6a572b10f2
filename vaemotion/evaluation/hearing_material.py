"""What the hearing report listens to: clips with the class that they belong to, and the windows of sound in them.

In: a split of the procedural works, or the items of a manifest of recordings. Out: `Material`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vaemotion.contract import prompts
from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd, audio_window, window_ends_s
from vaemotion.data.item import Item
from vaemotion.data.loader import load_clip
from vaemotion.data.procedural_art import CONTENT_CLASSES, sample_work, work_seed
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.base_vlm import frames_at
from vaemotion.training.windows_cache import SPREAD_S, window_log_mel

_WORKS_PER_SEED = 10_000_000  # works of a split that belong to one seed

T = TypeVar("T")
Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """``options``: the classes; ``truth`` (n,): the class of each clip; ``works`` (n,): what it is part of, over which intervals are made;
    ``log_mel`` (m, frames, mels): normalised windows, one or more a clip; ``clip_of`` (m,): the clip of each window, ascending;
    ``visual`` (n, N_v, D): visual tokens of the same clips, (n, 0, D) where there is nothing to see."""

    name: str
    options: tuple[str, ...]
    truth: Indices
    works: tuple[str, ...]
    log_mel: Tensor
    clip_of: Indices
    visual: Tensor

    @property
    def chance(self) -> float:
        return 1 / len(self.options)

    @property
    def first_windows(self) -> Indices:
        """One window of each clip, (n,)."""
        return np.searchsorted(self.clip_of, np.arange(len(self.truth))).astype(np.int64)

    def per_clip(self, scores: npt.ArrayLike) -> Array:
        """The mean over each clip's windows: (m, k) → (n, k)."""
        values = np.asarray(scores, np.float64)
        total = np.add.reduceat(values, self.first_windows, axis=0)
        return total / np.bincount(self.clip_of)[:, None]


def procedural_material(
    model: VAEmotionLLM, split: str, count: int, seed: int, *, with_sight: bool = True
) -> Material:
    """``count`` works of a split, one window each; another seed gives other works. Sight is the newest pictures that the language
    model reads (``language_frames``). Works of the split train lie beyond those that any stage streams."""
    front_end = model.config.front_end
    pictures = front_end.windows.language_frames
    earliest_s = max(front_end.windows.audio_window_s, front_end.windows.visual_window_s) + 0.1
    truth: list[int] = []
    visual: list[Tensor] = []
    log_mel: list[Tensor] = []
    first = (seed + 1) * _WORKS_PER_SEED
    for index in progress(range(first, first + count), f"works of split {split}"):
        work = sample_work(work_seed(split, index))
        now_s = earliest_s + float(np.random.default_rng([2, work.seed]).uniform(0, SPREAD_S))
        truth.append(CONTENT_CLASSES.index(work.content))
        log_mel.append(torch.from_numpy(window_log_mel(work, now_s, front_end)))
        if with_sight:
            with torch.no_grad():
                pixels = frames_at(work, now_s, pictures, front_end).to(model.device)
                visual.append(model.vision(pixels).flatten(0, 1))  # (pictures * T, D)
    seen = torch.stack(visual) if visual else torch.zeros(count, 0, model.width)
    return Material(
        "procedural works", CONTENT_CLASSES, np.array(truth), tuple(f"work {first + k}" for k in range(count)),
        torch.stack(log_mel), np.arange(count), seen,
    )  # fmt: skip


def recordings_material(items: Sequence[Item], media_root: Path, split: str, model: VAEmotionLLM) -> Material:
    """The recordings of a split whose content is asked from their sound; see ``contract.front_end.window_ends_s``.

    Raises UsageError when there are none, when they do not share one set of options, and for one without sound.
    """
    asked = {prompts.CONTENT.text, *prompts.CONTENT.paraphrases}
    mine = [
        i for i in items if i.split == split and i.modality == "audio" and i.options and i.question in asked
    ]
    if not mine:
        raise UsageError(
            f"the recordings have no item of split {split!r} that asks {prompts.CONTENT.text!r} about a sound with options; "
            f"their splits: {', '.join(sorted({item.split for item in items}))}"
        )
    options = _shared_options(mine)
    front_end = model.config.front_end
    windows: list[Tensor] = []
    clip_of: list[int] = []
    for clip, item in enumerate(progress(mine, f"recordings of split {split}")):
        recording = load_clip(item, media_root)
        samples = recording.samples
        if samples is None:
            raise UsageError(f"item {item.id!r} has no sound, and the hearing report wants recordings")
        ends_s = window_ends_s(recording, "audio", front_end)
        windows += [torch.from_numpy(audio_window(samples, end_s, front_end)) for end_s in ends_s]
        clip_of += [clip] * len(ends_s)
    truth = [options.index((item.options or ())[item.answer_index or 0]) for item in mine]
    name = "recordings of " + ", ".join(sorted({item.source for item in mine}))
    return Material(
        name, options, np.array(truth), tuple(item.work_id for item in mine), torch.stack(windows),
        np.array(clip_of), torch.zeros(len(mine), 0, model.width),
    )  # fmt: skip


def _shared_options(items: Sequence[Item]) -> tuple[str, ...]:
    """Our own classes come in their own order, others behind them in the order of the alphabet."""
    sets = {frozenset(item.options or ()) for item in items}
    if len(sets) > 1:
        raise UsageError(
            f"the recordings must all offer the same options, got {len(sets)} different sets of them"
        )
    named = set().union(*sets)
    return (*(name for name in CONTENT_CLASSES if name in named), *sorted(named.difference(CONTENT_CLASSES)))


def silence(front_end: FrontEnd) -> Tensor:
    """The window of a medium that is silent, (1, frames, mels)."""
    filled_s = front_end.filled_audio_window_s
    samples = np.zeros(round(filled_s * SAMPLE_RATE_HZ), np.float32)
    return torch.from_numpy(audio_window(samples, filled_s, front_end))[None]


def other_clips(truth: Indices, seed: int) -> Indices:
    """For each clip another one that is of another class, each taken once, (n,).

    Raises UsageError when one class has more than half of the clips.
    """
    rng = np.random.default_rng([seed, 12])
    order = np.lexsort((rng.random(len(truth)), truth))  # by class, within it by chance
    largest = int(np.bincount(truth).max())
    if 2 * largest > len(truth):
        raise UsageError(
            f"{largest} of {len(truth)} clips are of one class, so that not each can get another class's sound: use more clips"
        )
    others = np.empty_like(order)
    others[order] = np.roll(order, -largest)  # a whole class further, whichever class it is
    return others


def progress(values: Sequence[T], title: str) -> Iterable[T]:
    """The values, with a bar on the standard error."""
    return track(values, title, console=Console(stderr=True))
