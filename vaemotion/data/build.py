"""Procedural art written to disk: clips and a manifest, for evaluation and for a look at them.

In: a folder, a split and a count. Out: ``media/<split>-<index>.mkv`` and ``manifest.jsonl`` with six items a work.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import PATHS
from vaemotion.contract.prompts import CONTENT, EMOTION, StandardQuestion
from vaemotion.data.item import Item, content_sha256
from vaemotion.data.manifest import write_manifest
from vaemotion.data.procedural_art import (
    CONTENT_CLASSES,
    SPLITS,
    Work,
    draw_frame,
    sample_work,
    synthesise,
    work_seed,
)
from vaemotion.data.writer import write_clip

DURATION_S = 3.2  # the visual window's span, and a little more than the audio window
FRAME_RATE_HZ = 10
MEDLEY_WORK_S, MEDLEY_FRAME_RATE_HZ, MEDLEY_SIDE_PX = 5.0, 20, 320
# Seed s writes works s * 2**20 and on of the split, so that builds with different seeds share no work.
_WORKS_PER_SEED = 1 << 20


def build_procedural(out: Path, split: str, count: int, seed: int = 0) -> None:
    """Write ``count`` works of ``split`` below ``out``.

    Per work and path a content question (all classes as options, shuffled) and an emotion question (the nine
    emotions; the answer is the likeliest), both with the work's labels. The manifest is written last: where it is,
    the media are whole. Raises UsageError for an unknown split, a seed or count out of range, and UserError where
    ``out`` holds a manifest already.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 1 <= count <= _WORKS_PER_SEED or not 0 <= seed < _WORKS_PER_SEED:
        raise UsageError(
            f"count ({count}) must be in 1..{_WORKS_PER_SEED} and seed ({seed}) below {_WORKS_PER_SEED}"
        )
    manifest = out / "manifest.jsonl"
    if manifest.exists():
        raise UserError(f"{manifest} exists already, give another folder with --out or remove it")
    items: list[Item] = []
    for index in track(range(count), f"{split} works", console=Console(stderr=True)):
        work = sample_work(work_seed(split, seed * _WORKS_PER_SEED + index))
        video = f"media/{split}-{index:05d}.mkv"
        _write_work(out / video, work)
        items += _items(work, video, content_sha256([out / video]), split)
    write_manifest(manifest, items)
    print(f"{manifest}: {len(items)} items of {count} works")


def _write_work(path: Path, work: Work) -> None:
    n_frames = round(DURATION_S * FRAME_RATE_HZ)
    frames = np.stack([draw_frame(work, number / FRAME_RATE_HZ) for number in range(n_frames)])
    write_clip(path, frames, FRAME_RATE_HZ, synthesise(work, DURATION_S))


def build_medley(out: Path, count: int, seed: int) -> None:
    """Write one clip of ``count`` works of the test split one after the other, ``MEDLEY_WORK_S`` each, of different classes: something to
    look at and to run. Raises UsageError for a count that the classes do not allow."""
    if not 1 <= count <= len(CONTENT_CLASSES):
        raise UsageError(
            f"--count must be 1 to {len(CONTENT_CLASSES)} (each work is of another class), got {count}"
        )
    classes = np.random.default_rng([seed, 2]).permutation(len(CONTENT_CLASSES))[:count]
    works = [
        sample_work(work_seed("test", seed * _WORKS_PER_SEED + k), CONTENT_CLASSES[c])
        for k, c in enumerate(classes)
    ]
    times_s = np.arange(round(MEDLEY_WORK_S * MEDLEY_FRAME_RATE_HZ)) / MEDLEY_FRAME_RATE_HZ
    drawn = [
        [draw_frame(work, float(time_s), MEDLEY_SIDE_PX) for time_s in times_s]
        for work in track(works, "works", console=Console(stderr=True))
    ]
    sound = np.concatenate([synthesise(work, MEDLEY_WORK_S) for work in works])
    write_clip(out, np.stack([frame for frames in drawn for frame in frames]), MEDLEY_FRAME_RATE_HZ, sound)
    print(f"{out}: {', '.join(work.content for work in works)}, {MEDLEY_WORK_S:.0f} s each")


def _items(work: Work, video: str, sha256: str, split: str) -> list[Item]:
    shuffled = np.random.default_rng([work.seed, 1]).permutation(len(CONTENT_CLASSES))
    classes = tuple(CONTENT_CLASSES[position] for position in shuffled)
    emotion = EMOTIONS[int(np.argmax(work.emotion_distribution))]
    asked = ((CONTENT, classes, work.content), (EMOTION, EMOTIONS, emotion))
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
        creator_id=f"procedural-{split}",  # one author a split: creators never cross splits
        source="procedural-art",
        license="CC0-1.0",
        sha256=sha256,
    )
