"""Clips for the hearing report: their classes, their windows of sound, and their visual tokens.

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
from vaemotion.data.art.art import CONTENT_CLASSES, sample_work, work_seed
from vaemotion.data.art.windows import SPREAD_S, frames_at, window_log_mel
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import load_clip
from vaemotion.model.vaemotion_llm import VAEmotionLLM

_WORKS_PER_SEED = 10_000_000  # works of a split that belong to one seed

T = TypeVar("T")
Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """Clips with their classes and windows: n clips, m windows, one or more per clip."""

    name: str
    options: tuple[str, ...]  # the classes
    truth: Indices  # (n,) index of each clip's class in ``options``
    works: tuple[str, ...]  # (n,) the work that each clip is part of; intervals are over works
    log_mel: Tensor  # (m, frames, mels), normalized
    clip_of: Indices  # (m,) the clip of each window, ascending
    visual: Tensor  # (n, N_v, D) visual tokens of the same clips; (n, 0, D) for clips without frames

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.options)

    @property
    def first_windows(self) -> Indices:
        """Index of each clip's first window, (n,)."""
        return np.searchsorted(self.clip_of, np.arange(len(self.truth))).astype(np.int64)

    def per_clip(self, scores: npt.ArrayLike) -> Array:
        """Average scores over each clip's windows: (m, k) → (n, k)."""
        values = np.asarray(scores, np.float64)
        total = np.add.reduceat(values, self.first_windows, axis=0)
        return total / np.bincount(self.clip_of)[:, None]


def procedural_material(
    model: VAEmotionLLM, split: str, count: int, seed: int, *, with_visual: bool = True
) -> Material:
    """Make material of ``count`` works of a split, one window each; another seed gives other works.

    The visual tokens are those of the newest frames that the language model is given (``language_frames``);
    ``with_visual`` False leaves them out. Works of the split train lie beyond those that any stage trains on.
    """
    front_end = model.config.front_end
    frames = front_end.windows.language_frames
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
        if with_visual:
            with torch.no_grad():
                pixels = torch.from_numpy(frames_at(work, now_s, frames, front_end)).to(model.device)
                visual.append(model.vision(pixels).flatten(0, 1))  # (frames * T, D)
    return Material(
        name="procedural works",
        options=CONTENT_CLASSES,
        truth=np.array(truth),
        works=tuple(f"work {first + k}" for k in range(count)),
        log_mel=torch.stack(log_mel),
        clip_of=np.arange(count),
        visual=torch.stack(visual) if visual else torch.zeros(count, 0, model.width),
    )


def recordings_material(items: Sequence[Item], media_root: Path, split: str, model: VAEmotionLLM) -> Material:
    """Make material of the recordings of a split whose items ask for the content of their sound.

    Their windows are those of ``contract.front_end.window_ends_s``. Raises UsageError for a split without
    such items, for items that do not share one set of options, and for an item without sound.
    """
    texts = {prompts.CONTENT.text, *prompts.CONTENT.paraphrases}
    chosen = [
        i for i in items if i.split == split and i.modality == "audio" and i.options and i.question in texts
    ]
    if not chosen:
        raise UsageError(
            f"the recordings have no item of split '{split}' that asks “{prompts.CONTENT.text}” about a "
            f"sound with options; their splits: {', '.join(sorted({item.split for item in items}))}"
        )
    options = _shared_options(chosen)
    front_end = model.config.front_end
    windows: list[Tensor] = []
    clip_of: list[int] = []
    for clip, item in enumerate(progress(chosen, f"recordings of split {split}")):
        recording = load_clip(item, media_root)
        samples = recording.samples
        if samples is None:
            raise UsageError(f"item '{item.id}' has no sound; remove it from the recordings")
        ends_s = window_ends_s(recording, "audio", front_end)
        windows += [torch.from_numpy(audio_window(samples, end_s, front_end)) for end_s in ends_s]
        clip_of += [clip] * len(ends_s)
    return Material(
        name="recordings of " + ", ".join(sorted({item.source for item in chosen})),
        options=options,
        truth=np.array([options.index((item.options or ())[item.answer_index or 0]) for item in chosen]),
        works=tuple(item.work_id for item in chosen),
        log_mel=torch.stack(windows),
        clip_of=np.array(clip_of),
        visual=torch.zeros(len(chosen), 0, model.width),
    )


def _shared_options(items: Sequence[Item]) -> tuple[str, ...]:
    """Return the options that all items share: procedural classes in their order, then others by name."""
    sets = {frozenset(item.options or ()) for item in items}
    if len(sets) > 1:
        raise UsageError(f"the recordings must all offer the same options, got {len(sets)} different sets")
    named = set().union(*sets)
    return (*(name for name in CONTENT_CLASSES if name in named), *sorted(named.difference(CONTENT_CLASSES)))


def silence(front_end: FrontEnd) -> Tensor:
    """Return the log-mel window of digital silence, (1, frames, mels)."""
    filled_s = front_end.filled_audio_window_s
    samples = np.zeros(round(filled_s * SAMPLE_RATE_HZ), np.float32)
    return torch.from_numpy(audio_window(samples, filled_s, front_end))[None]


def other_clips(truth: Indices, seed: int) -> Indices:
    """Assign to each clip another one of another class; each is used once, (n,).

    Raises UsageError when one class has more than half of the clips.
    """
    rng = np.random.default_rng([seed, 12])
    order = np.lexsort((rng.random(len(truth)), truth))  # by class, at random within it
    largest = int(np.bincount(truth).max())
    if 2 * largest > len(truth):
        raise UsageError(
            f"{largest} of {len(truth)} clips are of one class, which leaves too few of other classes to "
            "swap sounds with; use more clips"
        )
    others = np.empty_like(order)
    others[order] = np.roll(order, -largest)  # a shift by the largest class leaves every class
    return others


def progress(values: Sequence[T], title: str) -> Iterable[T]:
    """Show a progress bar on standard error while iterating over values."""
    return track(values, title, console=Console(stderr=True))
