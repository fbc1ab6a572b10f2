"""Sets of labeled windows for stage 2: one source's works on the paths that they were rated on.

In: works of one source with their windows, or encoded procedural works. Out: a `RatedSet`: tokens by the
number of a window, and its labels.

Sizes in the shapes: n works, w windows, b windows that are read, F frames, T tokens of a frame, N_a audio
tokens, D the language model's width, E emotions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vaemotion.contract.front_end import PATHS, FrontEnd
from vaemotion.data.clips.source import DamagedClip
from vaemotion.data.instructions import Known, emotions_of, known_of
from vaemotion.data.manifest.item import Item, label_at
from vaemotion.model.emo_adapter import CONSTRUCTS
from vaemotion.training.encoded import EncodedWindows
from vaemotion.training.rated_windows import RatedWork


@dataclass(frozen=True)
class WindowTokens:
    """Tokens of b windows. A window with fewer frames repeats its oldest one before them."""

    audio: Tensor  # (b, N_a, D) float32, zeros without sound
    audio_age_s: Tensor  # (b,) time since the sound ended
    visual: Tensor  # (b, F, T, D) float32, oldest frame first, zeros without pictures
    frames: Tensor  # (b,) int, the frames that the window really has
    frame_age_s: Tensor  # (b, F)


class TokenReader(Protocol):
    """Place of a set's tokens."""

    def read(self, windows: Sequence[int]) -> WindowTokens:
        """Read the tokens of these windows."""
        ...


@dataclass(frozen=True)
class RatedSet:
    """The windows of one source with their labels.

    ``paths``: a window gives a row on each of them. ``kind``: STILL, SOUND or FILM. ``first`` (n + 1,): the
    windows of work i are ``first[i]`` to ``first[i + 1]``, at least one.
    """

    source: str
    construct: int  # index into ``CONSTRUCTS``
    paths: tuple[str, ...]
    kind: str
    machine_made: bool
    tokens: TokenReader
    first: Tensor  # (n + 1,) int
    known: tuple[Known, ...]  # of the n works; their affect is that of no certain time
    affect: Tensor  # (w, 2) valence and arousal, NaN where nobody was asked
    signs: Tensor  # (w, 2) -1 or 1, NaN where more or nothing is known
    emotions: Tensor  # (n, E) distributions, NaN where nobody was asked
    damaged: tuple[DamagedClip, ...] = ()  # works that were left out
    unlabeled: tuple[str, ...] = ()  # works without a window that their labels hold for
    digest: str = ""  # of everything that tokens and labels depend on

    def __len__(self) -> int:
        """Return the number of works."""
        return len(self.known)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.affect)

    @property
    def name(self) -> str:
        """Source, construct and paths, for logs."""
        made = ", machine-made" if self.machine_made else ""
        return f"{self.source}, {CONSTRUCTS[self.construct]}, {' + '.join(self.paths)}{made}"

    def work_of(self, window: int) -> int:
        """Return the work that a window belongs to."""
        return int(torch.searchsorted(self.first, window, right=True)) - 1

    def known_at(self, window: int) -> Known:
        """Return what is known of a window, its affect at that time."""
        valence, arousal = (None if np.isnan(v) else v for v in self.affect[window].tolist())
        return replace(self.known[self.work_of(window)], valence=valence, arousal=arousal)


def labeled_set(
    works: Sequence[RatedWork],
    ends_s: Sequence[Sequence[float]],
    tokens: TokenReader,
    emotions: Sequence[str],
    paths: tuple[str, ...],
) -> RatedSet:
    """Label the windows of works of one source, construct and kind. ``ends_s``: of each work's windows.

    ``emotions``: the names over which distributions are given.
    """
    items = [work.item for work in works]
    counts = torch.tensor([0, *map(len, ends_s)])
    windows = [(item, end_s) for item, ends in zip(items, ends_s, strict=True) for end_s in ends]
    affect = [[_or_nan(v) for v in label_at(item, end_s)] for item, end_s in windows]
    signs = [
        [_or_nan(sign) if np.isnan(v) else np.nan for sign, v in zip(_signs(item), row, strict=True)]
        for (item, _), row in zip(windows, affect, strict=True)
    ]
    unknown = (np.nan,) * len(emotions)
    return RatedSet(
        items[0].source,
        CONSTRUCTS.index(items[0].construct or "expressed"),
        paths,
        works[0].kind,
        bool(items[0].machine_made),
        tokens,
        counts.cumsum(0),
        tuple(known_of(item, emotions) for item in items),
        torch.tensor(affect),
        torch.tensor(signs),
        torch.tensor([emotions_of(item, emotions) or unknown for item in items]),
    )


def _signs(item: Item) -> tuple[int | None, int | None]:
    return item.valence_sign, item.arousal_sign


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


# --- procedural works ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedTokens:
    """A `TokenReader` of encoded clips, one window each."""

    windows: EncodedWindows
    audio: Tensor  # (w, N_a, D) float32
    front_end: FrontEnd

    def read(self, windows: Sequence[int]) -> WindowTokens:
        """Read the tokens of these windows."""
        frames = self.front_end.windows.frames
        visual = torch.stack([self.windows.pictures(window, frames) for window in windows]).float()
        age_s = (frames - 1 - torch.arange(frames)) * self.front_end.windows.frame_spacing_s  # (F,)
        count = len(windows)
        return WindowTokens(
            self.audio[list(windows)],
            torch.zeros(count),
            visual,
            torch.full((count,), frames),
            age_s.expand(count, -1),
        )


def encoded_set(
    windows: EncodedWindows, audio: Tensor, front_end: FrontEnd, emotions: Sequence[str]
) -> RatedSet:
    """Make a set of encoded clips whose labels hold on all paths. ``audio``: their tokens, (w, N_a, D)."""
    works = [RatedWork(windows.item(window)) for window in range(len(windows))]
    tokens = EncodedTokens(windows, audio, front_end)
    made = labeled_set(works, [[0.0]] * len(works), tokens, emotions, PATHS)
    return replace(made, digest=windows.store.digest)
