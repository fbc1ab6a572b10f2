"""Batches of stage 2: rows of the adapter's input, each on one path, with their labels.

In: sample numbers and the sets of labeled windows. Out: an `AdapterBatch`. A path is a mask: a window gives
the same tokens on each of its paths.

Sizes in the shapes: b samples, R rows, F frames, T tokens of a frame, N_a audio tokens, N_v = F · T visual
tokens, D the language model's width, E emotions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaemotion.contract.front_end import PATHS, reads_frames, reads_sound
from vaemotion.model.vaemotion_llm import VAEmotionLLM
from vaemotion.training.config import TrainingConfig
from vaemotion.training.rated_sets import RatedSet
from vaemotion.training.rated_windows import FILM, STILL

LATE_S = 0.1  # a reading comes at most this long after its newest frame or sound


@dataclass(frozen=True)
class AdapterBatch:
    """Rows of the adapter's input, each on one path, with their labels."""

    audio: Tensor  # (R, N_a, D)
    audio_mask: Tensor  # (R, N_a) bool
    audio_age_s: Tensor  # (R, N_a)
    visual: Tensor  # (R, N_v, D)
    visual_mask: Tensor  # (R, N_v) bool
    visual_age_s: Tensor  # (R, N_v)
    path: Tensor  # (R,) index into ``PATHS``
    source: Tensor  # (R,) number of the set
    construct: Tensor  # (R,) index into ``CONSTRUCTS``
    machine_made: Tensor  # (R,) bool, True where a model gave the labels
    affect: Tensor  # (R, 2) valence and arousal, NaN where there is no label
    signs: Tensor  # (R, 2) -1 or 1 where the label is only a sign, else NaN
    emotions: Tensor  # (R, E) distribution, NaN where there is none

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the arguments of ``EmoAdapter.forward``."""
        audio = (self.audio, self.audio_mask, self.audio_age_s)
        return (*audio, self.visual, self.visual_mask, self.visual_age_s)

    def only(self, chosen: Tensor) -> AdapterBatch:
        """Return the rows where ``chosen`` (R,) is True."""
        return AdapterBatch(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def to(self, device: torch.device) -> AdapterBatch:
        """Return the rows on another device."""
        return AdapterBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def joined(batches: Sequence[AdapterBatch]) -> AdapterBatch:
    """Concatenate the rows of all batches."""
    return AdapterBatch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(AdapterBatch)))


def audio_token_ages_s(model: VAEmotionLLM) -> Tensor:
    """Return the age of each audio token's end at the end of the window, (N_a,)."""
    count, window_s = model.audio_pathway.n_tokens, model.config.front_end.windows.audio_window_s
    return window_s * (1 - (torch.arange(count) + 1) / count)


class Rows:
    """Sample numbers → rows of the adapter's input (see ``loop.fit``).

    A sample is a window of every set.
    """

    def __init__(self, model: VAEmotionLLM, sets: Sequence[RatedSet], config: TrainingConfig) -> None:
        self.sets, self.config = list(sets), config
        self.audio_ages_s = audio_token_ages_s(model)  # (N_a,)

    def collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Make a batch: for each set and each of its paths b rows.

        ``windows`` holds the window of each set that each sample is, ``first_row`` the place of the rows of
        a set (its number) on a path.
        """
        rngs = [np.random.default_rng([self.config.seed, 8, number]) for number in numbers]
        batches: list[AdapterBatch] = []
        windows: list[list[int]] = []
        first_row: dict[tuple[int, str], int] = {}
        for which, each in enumerate(self.sets):
            windows.append([drawn_window(each, rng) for rng in rngs])
            for path in each.paths:
                first_row[which, path] = (len(batches) + each.paths.index(path)) * len(numbers)
            batches += self.of(which, windows[-1], rngs)
        return {
            "rows": joined(batches),
            "windows": windows,
            "first_row": first_row,
            "numbers": list(numbers),
            "step": numbers[0] // self.config.emotion.optimisation.batch,
        }

    def of(
        self, which: int, windows: Sequence[int], rngs: Sequence[np.random.Generator]
    ) -> list[AdapterBatch]:
        """Make the rows of windows of a set as the device would have them, b rows for each path of the set.

        Ages of a film lie between grid points, and a quarter of its windows holds fewer frames, as a stream
        that has just begun. A still is in the newest frame alone, or in several of the newest frames.
        """
        rated = self.sets[which]
        tokens = rated.tokens.read(windows)
        b, frames, per_frame = tokens.visual.shape[:3]
        late_s = audio_late_s = torch.zeros(b, 1)
        kept = torch.zeros(b, dtype=torch.long)
        if rated.kind == FILM:
            late_s = torch.tensor([rng.uniform(0.0, LATE_S) for rng in rngs])[:, None]  # (b, 1)
            kept = torch.tensor(
                [frames if rng.random() < 0.75 else int(rng.integers(1, frames + 1)) for rng in rngs]
            )  # (b,)
            audio_late_s = torch.tensor([rng.uniform(0.0, LATE_S) for rng in rngs])[:, None]  # (b, 1)
        elif rated.kind == STILL:
            kept = torch.tensor(
                [1 if rng.random() < 0.7 else int(rng.integers(1, frames + 1)) for rng in rngs]
            )
        held = torch.minimum(kept, tokens.frames)[:, None]  # (b, 1)
        present = (torch.arange(frames)[None] >= frames - held).repeat_interleave(per_frame, 1)  # (b, N_v)
        age_s = (tokens.frame_age_s + late_s).repeat_interleave(per_frame, 1)  # (b, N_v)
        audio_age_s = self.audio_ages_s[None] + audio_late_s + tokens.audio_age_s[:, None]  # (b, N_a)
        works = [rated.work_of(window) for window in windows]
        chosen = list(windows)
        return [
            AdapterBatch(
                audio=tokens.audio,
                audio_mask=torch.full(tokens.audio.shape[:2], reads_sound(path)),
                audio_age_s=self._ages(audio_age_s),
                visual=tokens.visual.flatten(1, 2),
                visual_mask=present & reads_frames(path),
                visual_age_s=self._ages(age_s),
                path=torch.full((b,), PATHS.index(path)),
                source=torch.full((b,), which),
                construct=torch.full((b,), rated.construct),
                machine_made=torch.full((b,), rated.machine_made),
                affect=rated.affect[chosen],
                signs=rated.signs[chosen],
                emotions=rated.emotions[works],
            )
            for path in rated.paths
        ]

    def _ages(self, age_s: Tensor) -> Tensor:
        """Return the ages, or zeros where the configuration leaves them out."""
        return age_s if self.config.emotion.token_ages else torch.zeros_like(age_s)


def drawn_window(rated: RatedSet, rng: np.random.Generator) -> int:
    """Draw a work of a set, then a window of it."""
    work = int(rng.integers(len(rated)))
    first, end = int(rated.first[work]), int(rated.first[work + 1])
    return first + (int(rng.integers(end - first)) if end - first > 1 else 0)
