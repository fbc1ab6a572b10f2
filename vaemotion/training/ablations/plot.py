"""The ablations' plot: the figure of each group's first contrast, its mean as a bar, seeds as dots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from vaemotion.contract.files import whole_file
from vaemotion.training.ablations.plan import GROUPS, Group

if TYPE_CHECKING:
    from vaemotion.training.ablations.plan import Document

_DPI = 80
_COLOR = "#2b6cb0"


def write_plot(document: Document, file: Path) -> bool:
    """Write the plot (PNG) and return True, or False when there is no result to show."""
    shown = [group for group in GROUPS if any(_numbers(document, group, v.name) for v in group.variants)]
    if not shown:
        file.unlink(missing_ok=True)
        return False
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.3 * columns, 0.3 + 2.0 * lines), layout="constrained")
    panels: Any = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, group in zip(panels.flat, shown, strict=False):
        _draw(axes, document, group)
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")
    return True


def _numbers(document: Document, group: Group, variant: str) -> list[float]:
    values = document.values(group, variant, group.contrasts[0].figure)
    return [value for value in values if value is not None]


def _draw(axes: Any, document: Document, group: Group) -> None:
    for position, variant in enumerate(group.variants):
        if numbers := _numbers(document, group, variant.name):
            axes.barh(position, np.mean(numbers), 0.7, color=_COLOR, alpha=0.45)
            axes.plot(numbers, [position] * len(numbers), "o", color=_COLOR, markersize=3)
    axes.set_yticks(range(len(group.variants)), [variant.name for variant in group.variants], fontsize=7)
    axes.set_ylim(len(group.variants) - 0.5, -0.5)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(f"{group.title}\n{group.contrasts[0].what}", fontsize=7)
