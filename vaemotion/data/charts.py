"""Tables for the terminal that the statistics share: how often each name occurs, and how values spread over [-1, 1]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rich.table import Table

_BIN_EDGES = np.linspace(-1, 1, 11)
_BAR_CELLS = 18


def bar(share: float, largest: float) -> str:
    return "█" * round(_BAR_CELLS * share / largest) if largest else ""


def balance_table(title: str, names: Sequence[str], found: Sequence[str], counted: str) -> Table:
    """One line a name. ``counted``: what ``found`` has one name for each of, as a heading."""
    counts = Counter(found)
    table = Table(title, counted, "share", "")
    for name in names:
        cells = bar(counts[name], max(counts.values()))
        table.add_row(name, str(counts[name]), f"{counts[name] / len(found):.3f}", cells)
    return table


def affect_table(labels: Mapping[str, npt.NDArray[np.float64]]) -> Table:
    """Histogram, mean and deviation of each column of ``labels``; NaN is missing, and its share is told."""
    histograms = [np.histogram(values, _BIN_EDGES)[0] for values in labels.values()]
    table = Table("from", "to", *[heading for name in labels for heading in (name, "")])
    for index in range(len(_BIN_EDGES) - 1):
        cells = [f"{_BIN_EDGES[index]:+.1f}", f"{_BIN_EDGES[index + 1]:+.1f}"]
        for histogram in histograms:
            cells += [str(histogram[index]), bar(float(histogram[index]), float(histogram.max()))]
        table.add_row(*cells)
    table.add_row("", "", *[cell for values in labels.values() for cell in ("", mean_and_sd(values))])
    return table


def mean_and_sd(values: npt.NDArray[np.float64]) -> str:
    """For example "mean +0.10, sd 0.42, 25% missing", or "none" where every value is missing."""
    given = values[~np.isnan(values)]
    if not given.size:
        return "none"
    text = f"mean {given.mean():+.2f}, sd {given.std():.2f}"
    return text if given.size == values.size else f"{text}, {1 - given.size / values.size:.0%} missing"
