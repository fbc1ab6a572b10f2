"""Encoded windows and lessons of stage 1, made of given tensors instead of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.tiny import tiny_model
from vaemotion.contract.front_end import FrontEnd
from vaemotion.data.clips.of_art import ArtClips
from vaemotion.data.question_bank import read_question_bank
from vaemotion.training.encoded import BLOCK, Block, EncodedWindows, Windows, WindowStore
from vaemotion.training.recordings import Recording
from vaemotion.training.teacher import Lessons
from vaemotion.training.vg_align import AlignData

QUESTIONS = read_question_bank().audible  # the first one asks for content


def encoded(
    folder: Path, visual: Tensor, log_mel: Tensor, front_end: FrontEnd | None = None
) -> EncodedWindows:
    """Write works as one block with these tokens (n, frames, T, D) and log-mel (n, frames, mels)."""
    count = len(visual)
    assert count <= BLOCK
    front_end = front_end or tiny_model().config.front_end
    source = ArtClips(count, "train", front_end.windows)
    store = WindowStore(Windows(source, front_end, 0), "base", folder)
    items = tuple(source.item(index) for index in range(count))
    store.write(Block(0, tuple(range(count)), items, visual.half(), log_mel.half(), ()))
    return EncodedWindows(store)


def lessons(
    rows: Sequence[tuple[int, int, int, str]],
    names: Sequence[str],
    affect: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Lessons:
    """Make lessons (window, frames, question, answer) about windows that the teacher gives these names."""
    answers = tuple(dict.fromkeys([*(row[3] for row in rows), *names]))
    columns = np.array([(*row[:3], answers.index(row[3])) for row in rows], np.int32).reshape(-1, 4)
    count = len(names)
    return Lessons(
        *(np.ascontiguousarray(column) for column in columns.T),
        answers=answers,
        name=np.array([answers.index(name) for name in names], np.int32),
        hidden=torch.zeros(count, 64).half() if hidden is None else hidden.half(),
        affect=torch.full((count, 2), torch.nan) if affect is None else affect,
        incoherent=0,
        cut=0,
        empty=0,
        repeated=0,
    )


def align_data(windows: EncodedWindows, given: Lessons, recordings: Sequence[Recording] = ()) -> AlignData:
    """Join windows and lessons as ``vg_align.prepare`` does."""
    return AlignData(windows, given, QUESTIONS, list(recordings))


def small_windows(folder: Path, count: int = 5) -> EncodedWindows:
    """Encode works of the tiny model's sizes with random tokens."""
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(count, 4, 4, 64, generator=generator)
    return encoded(folder, visual, torch.randn(count, 50, 32, generator=generator))
