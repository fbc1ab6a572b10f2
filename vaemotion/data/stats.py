"""What the procedural art holds: class balance, affect, oracle ceilings, and what trivial baselines reach on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UsageError, UserError
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

_BIN_EDGES = np.linspace(-1, 1, 11)
_BAR_CELLS = 18


def print_stats(split: str, count: int, train_count: int) -> None:
    """Print tables on ``count`` works of ``split``, and the baselines' content accuracy on as many validation works.

    Raises UsageError for an unknown split, UserError when a baseline exceeds its limit: the data would be trivial.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    console = Console()
    works = [sample_work(work_seed(split, index)) for index in range(count)]
    console.print(_balance_table("content", CONTENT_CLASSES, [work.content for work in works]))
    likeliest = [EMOTIONS[int(np.argmax(work.emotion_distribution))] for work in works]
    console.print(_balance_table("likeliest emotion", EMOTIONS, likeliest))
    console.print(_affect_table(works))
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


def _bar(share: float, largest: float) -> str:
    return "█" * round(_BAR_CELLS * share / largest) if largest else ""


def _balance_table(title: str, names: Sequence[str], found: Sequence[str]) -> Table:
    counts = Counter(found)
    table = Table(title, "works", "share", "")
    for name in names:
        bar = _bar(counts[name], max(counts.values()))
        table.add_row(name, str(counts[name]), f"{counts[name] / len(found):.3f}", bar)
    return table


def _affect_table(works: Sequence[Work]) -> Table:
    labels = np.array([(work.valence, work.arousal) for work in works])  # (n, 2)
    histograms = [np.histogram(labels[:, column], _BIN_EDGES)[0] for column in (0, 1)]
    table = Table("from", "to", "valence", "", "arousal", "")
    for index in range(len(_BIN_EDGES) - 1):
        cells = [f"{_BIN_EDGES[index]:+.1f}", f"{_BIN_EDGES[index + 1]:+.1f}"]
        for histogram in histograms:
            cells += [str(histogram[index]), _bar(float(histogram[index]), float(histogram.max()))]
        table.add_row(*cells)
    means, deviations = labels.mean(0), labels.std(0)
    summary = [f"mean {mean:+.2f}, sd {sd:.2f}" for mean, sd in zip(means, deviations, strict=True)]
    table.add_row("", "", "", summary[0], "", summary[1])
    return table


def _ceiling_table(split: str, count: int) -> Table:
    table = Table("oracle ceiling (CCC)", "valence", "arousal")
    for path, ceiling in oracle_ceilings(split, count).items():
        table.add_row(path, f"{ceiling['valence']:.3f}", f"{ceiling['arousal']:.3f}")
    return table
