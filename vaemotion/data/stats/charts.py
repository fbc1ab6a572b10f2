"""Tables for the terminal: frequencies of names, and histograms of values in [-1, 1]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rich.table import Table

_BIN_EDGES = np.linspace(-1, 1, 11)
_BAR_CELLS = 18


def bar(share: float, largest: float) -> str:
    """Draw a bar in proportion to the largest share; empty when that is 0."""
    return "█" * round(_BAR_CELLS * share / largest) if largest else ""


def balance_table(title: str, names: Sequence[str], found: Sequence[str], counted: str) -> Table:
    """Make a table with the count and the share of each name.

    ``found``: one name per counted object. ``counted``: the heading that names these objects.
    """
    counts = Counter(found)
    table = Table(title, counted, "share", "")
    for name in names:
        cells = bar(counts[name], max(counts.values()))
        table.add_row(name, str(counts[name]), f"{counts[name] / len(found):.3f}", cells)
    return table


def affect_table(labels: Mapping[str, npt.NDArray[np.float64]]) -> Table:
    """Make a table with histogram, mean and standard deviation of each column; NaN counts as missing."""
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
    """Describe values as "mean +0.10, sd 0.42, 25% missing", or "none" when every value is missing."""
    given = values[~np.isnan(values)]
    if not given.size:
        return "none"
    text = f"mean {given.mean():+.2f}, sd {given.std():.2f}"
    return text if given.size == values.size else f"{text}, {1 - given.size / values.size:.0%} missing"
