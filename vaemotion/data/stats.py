"""What data hold. Of the procedural art: class balance, affect, oracle ceilings, and what trivial baselines reach on it;
of manifests: see `manifest_stats`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.charts import affect_table, balance_table
from vaemotion.data.manifest_stats import print_manifest_stats
from vaemotion.data.procedural_art import (
    CONTENT_CLASSES,
    SPLITS,
    Work,
    oracle_ceilings,
    sample_work,
    work_seed,
)
from vaemotion.data.triviality import (
    COLOUR_HISTOGRAM_LIMIT,
    MEAN_LOG_MEL_LIMIT,
    colour_histogram_accuracy,
    mean_log_mel_accuracy,
)

DEFAULT_SPLIT, DEFAULT_COUNT, DEFAULT_TRAIN_COUNT = "validation", 600, 1500


def describe(
    manifests: Sequence[Path],
    media_root: Path | None,
    split: str | None,
    count: int | None,
    train_count: int | None,
) -> None:
    """Describe manifests, or the procedural art where there is none; None is the default of each option.

    Raises UsageError for an option that belongs to the other.
    """
    procedural = {"--split": split, "--count": count, "--train-count": train_count}
    given = [name for name, value in procedural.items() if value is not None]
    if manifests and given:
        raise UsageError(f"{given[0]} is about the procedural art, leave it out or give no manifest")
    if not manifests and media_root is not None:
        raise UsageError("--media-root is about manifests, leave it out or give a manifest")
    if manifests:
        print_manifest_stats(manifests, media_root)
    else:
        print_stats(split or DEFAULT_SPLIT, count or DEFAULT_COUNT, train_count or DEFAULT_TRAIN_COUNT)


def print_stats(split: str, count: int, train_count: int) -> None:
    """Print tables on ``count`` works of ``split``, and the baselines' content accuracy on as many validation works.

    Raises UsageError for an unknown split, UserError when a baseline exceeds its limit: the data would be trivial.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    console = Console()
    works = [sample_work(work_seed(split, index)) for index in range(count)]
    console.print(balance_table("content", CONTENT_CLASSES, [work.content for work in works], "works"))
    likeliest = [EMOTIONS[int(np.argmax(work.emotion_distribution))] for work in works]
    console.print(balance_table("likeliest emotion", EMOTIONS, likeliest, "works"))
    console.print(_affect(works))
    console.print(_ceiling_table(split, count))
    with Console(stderr=True).status("fitting the trivial baselines"):
        accuracies = (
            ("colour histogram", colour_histogram_accuracy(train_count, count), COLOUR_HISTOGRAM_LIMIT),
            ("mean log-mel", mean_log_mel_accuracy(train_count, count), MEAN_LOG_MEL_LIMIT),
        )
    for name, accuracy, limit in accuracies:
        console.print(f"trivial baseline, {name}: content accuracy {accuracy:.3f} (limit {limit})")
    if broken := [name for name, accuracy, limit in accuracies if accuracy > limit]:
        raise UserError(f"the content is too easy: {' and '.join(broken)} exceeds its limit")


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
