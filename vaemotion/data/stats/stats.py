"""Statistics of data: tables about the procedural art, or about manifests (`of_manifests`).

Tables about the procedural art show class balance, affect, oracle ceilings and the accuracy of trivial
baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.terminal import Terminal
from vaemotion.data.art.art import SPLITS, Work, oracle_ceilings, sample_work, work_seed
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.art.triviality import (
    COLOR_HISTOGRAM_LIMIT,
    MEAN_LOG_MEL_LIMIT,
    color_histogram_accuracy,
    mean_log_mel_accuracy,
)
from vaemotion.data.stats.charts import affect_table, balance_table
from vaemotion.data.stats.of_manifests import print_manifest_stats

DEFAULT_SPLIT, DEFAULT_COUNT, DEFAULT_TRAIN_COUNT = "validation", 600, 1500


def describe(
    manifests: Sequence[Path],
    media_root: Path | None,
    split: str | None,
    count: int | None,
    train_count: int | None,
) -> None:
    """Describe manifests, or the procedural art when none is given.

    ``media_root`` belongs to manifests; ``split``, ``count`` and ``train_count`` belong to the procedural
    art, and None stands for their defaults. Raises UsageError for an option that belongs to the other
    subject.
    """
    procedural = {"--split": split, "--count": count, "--train-count": train_count}
    given = [name for name, value in procedural.items() if value is not None]
    if manifests and given:
        raise UsageError(f"{given[0]} applies to the procedural art; omit it or give no manifest")
    if not manifests and media_root is not None:
        raise UsageError("--media-root applies to manifests; omit it or give a manifest")
    if manifests:
        print_manifest_stats(manifests, media_root)
    else:
        print_stats(split or DEFAULT_SPLIT, count or DEFAULT_COUNT, train_count or DEFAULT_TRAIN_COUNT)


def print_stats(split: str, count: int, train_count: int) -> None:
    """Print tables about ``count`` works of ``split``, and the content accuracy of trivial baselines.

    The baselines learn from ``train_count`` works and are measured on ``count`` validation works. Raises
    UsageError for an unknown split, UserError when a baseline exceeds its limit, because then the content
    is trivial.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    console = Terminal()
    works = [sample_work(work_seed(split, index)) for index in range(count)]
    console.print(balance_table("content", CONTENT_CLASSES, [work.content for work in works], "works"))
    top_emotions = [EMOTIONS[int(np.argmax(work.emotion_distribution))] for work in works]
    console.print(balance_table("most probable emotion", EMOTIONS, top_emotions, "works"))
    console.print(_affect(works))
    console.print(_ceiling_table(split, count))
    with Terminal(stderr=True).status("fitting the trivial baselines"):
        accuracies = (
            ("color histogram", color_histogram_accuracy(train_count, count), COLOR_HISTOGRAM_LIMIT),
            ("mean log-mel", mean_log_mel_accuracy(train_count, count), MEAN_LOG_MEL_LIMIT),
        )
    for name, accuracy, limit in accuracies:
        console.print(f"trivial baseline, {name}: content accuracy {accuracy:.3f} (limit {limit})")
    if exceeded := [name for name, accuracy, limit in accuracies if accuracy > limit]:
        raise UserError(f"the content is too easy: {' and '.join(exceeded)} exceeds its limit")


def _affect(works: Sequence[Work]) -> Table:
    return affect_table(
        {
            "valence": np.array([work.valence for work in works]),
            "arousal": np.array([work.arousal for work in works]),
        }
    )


def _ceiling_table(split: str, count: int) -> Table:
    table = Table("oracle ceiling (CCC)", "valence", "arousal")
    for path, ceiling in oracle_ceilings(split, count).items():
        table.add_row(path, f"{ceiling['valence']:.3f}", f"{ceiling['arousal']:.3f}")
    return table
