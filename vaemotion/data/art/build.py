"""Builders that write procedural works to disk, as clips with a manifest or as one medley.

In: a folder, a split and a count. Out: ``media/<split>-<index>.mkv`` and ``manifest.jsonl`` with six items
per work.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.progress import track

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prompts import CONTENT, EMOTION, StandardQuestion
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.data.art.art import (
    SPLITS,
    Work,
    draw_frame,
    sample_work,
    synthesize,
    work_seed,
)
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.art.questions import content_options
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.manifest import write_manifest
from vaemotion.data.manifest.writer import write_clip

DURATION_S = 3.2  # the span of the visual window, slightly more than the audio window
FRAME_RATE_HZ = 10
MEDLEY_WORK_S, MEDLEY_FRAME_RATE_HZ, MEDLEY_SIDE_PX = 5.0, 20, 320
# Seed s takes the split's works from number s * 2**20 on, so that builds with different seeds share no work.
_WORKS_PER_SEED = 1 << 20


def build_procedural(out: Path, split: str, count: int, seed: int = 0) -> None:
    """Write ``count`` works of ``split`` below ``out`` and print one line about them.

    Each work has, per path, a content question (all classes as options, shuffled) and an emotion question
    (the nine emotions as options, the most probable one as the answer). Both carry the work's labels. The
    manifest is written last, so its presence means that the media are complete. Raises UsageError for an
    unknown split and for a seed or count out of range, UserError when ``out`` already holds a manifest.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 1 <= count <= _WORKS_PER_SEED or not 0 <= seed < _WORKS_PER_SEED:
        raise UsageError(
            f"count ({count}) must be in 1..{_WORKS_PER_SEED} and seed ({seed}) below {_WORKS_PER_SEED}"
        )
    manifest = out / "manifest.jsonl"
    if manifest.exists():
        raise UserError(f"{manifest} exists already; give another folder with --out or delete it")
    items: list[Item] = []
    for index in track(range(count), f"{split} works", console=Terminal(stderr=True)):
        work = sample_work(work_seed(split, seed * _WORKS_PER_SEED + index))
        video = f"media/{split}-{index:05d}.mkv"
        write_work(out / video, work)
        items += _items(work, video, content_sha256([out / video]), split)
    write_manifest(manifest, items)
    tell(f"{manifest}: {len(items)} items of {count} works")


def write_work(path: Path, work: Work) -> None:
    """Write a work as a clip of ``DURATION_S`` at ``FRAME_RATE_HZ``."""
    n_frames = round(DURATION_S * FRAME_RATE_HZ)
    frames = np.stack([draw_frame(work, number / FRAME_RATE_HZ) for number in range(n_frames)])
    write_clip(path, frames, FRAME_RATE_HZ, synthesize(work, DURATION_S))


def build_medley(out: Path, count: int, seed: int) -> None:
    """Write one clip that shows ``count`` works of the test split in sequence, for a demonstration.

    Each work has another class and lasts ``MEDLEY_WORK_S``. Raises UsageError for a count below 1 or above
    the number of classes.
    """
    if not 1 <= count <= len(CONTENT_CLASSES):
        raise UsageError(
            f"--count must be 1 to {len(CONTENT_CLASSES)} (each work has another class), got {count}"
        )
    classes = np.random.default_rng([seed, 2]).permutation(len(CONTENT_CLASSES))[:count]
    works = [
        sample_work(work_seed("test", seed * _WORKS_PER_SEED + k), CONTENT_CLASSES[c])
        for k, c in enumerate(classes)
    ]
    times_s = np.arange(round(MEDLEY_WORK_S * MEDLEY_FRAME_RATE_HZ)) / MEDLEY_FRAME_RATE_HZ
    drawn = [
        [draw_frame(work, float(time_s), MEDLEY_SIDE_PX) for time_s in times_s]
        for work in track(works, "works", console=Terminal(stderr=True))
    ]
    sound = np.concatenate([synthesize(work, MEDLEY_WORK_S) for work in works])
    write_clip(out, np.stack([frame for frames in drawn for frame in frames]), MEDLEY_FRAME_RATE_HZ, sound)
    tell(f"{out}: {', '.join(work.content for work in works)}, {MEDLEY_WORK_S:.0f} s each")


def _items(work: Work, video: str, sha256: str, split: str) -> list[Item]:
    emotion = EMOTIONS[int(np.argmax(work.emotion_distribution))]
    asked = ((CONTENT, content_options(work), work.content), (EMOTION, EMOTIONS, emotion))
    return [
        _item(work, video, sha256, split, path, question, options, answer)
        for path in PATHS
        for question, options, answer in asked
    ]


def _item(
    work: Work,
    video: str,
    sha256: str,
    split: str,
    path: str,
    question: StandardQuestion,
    options: tuple[str, ...],
    answer: str,
) -> Item:
    return Item(
        id=f"{work.seed:012x}-{path}-{question.task}",
        video=video,
        pairing="synchronised",
        question=question.text,
        answer=answer,
        options=options,
        answer_index=options.index(answer),
        task=question.task,
        audible=question.audible,
        modality=path,
        valence=round(work.valence, 6),
        arousal=round(work.arousal, 6),
        construct="expressed",
        emotion_distribution=tuple(round(share, 6) for share in work.emotion_distribution),
        split=split,
        work_id=f"procedural-{work.seed:012x}",
        creator_id=f"procedural-{split}",  # one creator per split, because a creator may not be in two splits
        source="procedural-art",
        license="CC0-1.0",
        sha256=sha256,
    )
