"""The plot of ``vaemotion soak``: readings by path, faults and memory over simulated hours.

In: a ``Soak``. Out: a PNG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.commands.soak.faults import KINDS
from runtime.commands.soak.records import Soak
from runtime.commands.soak.report import problems
from runtime.commands.timeline.plot import LIGHT, figure_bytes
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.words import counted, duration_words

_SIZE_IN = (10.0, 7.2)
_TOPS = (0.845, 0.63, 0.285)  # of the panels, as shares of the height
_HEIGHTS = (0.15, 0.28, 0.2)
_PATHS = {"audio-visual": LIGHT.valence, "visual": LIGHT.visual, "audio": LIGHT.audio, "nothing": LIGHT.rule}


def plot_soak(found: Soak, file: Path) -> None:
    """Write the plot as a PNG. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("plots need matplotlib: install it with `pip install 'vaemotion[plot]'`") from error
    figure: Any = Figure(figsize=_SIZE_IN, facecolor=LIGHT.paper)
    panels = [
        figure.add_axes((0.165, top - height, 0.8, height))
        for top, height in zip(_TOPS, _HEIGHTS, strict=True)
    ]
    for axes in panels:
        axes.set(facecolor=LIGHT.paper, xlim=(0, max(found.run.hours, 1e-3)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LIGHT.rule)
        axes.tick_params(length=0, labelsize=8, colors=LIGHT.muted)
    draw_paths(panels[0], found)
    draw_faults(panels[1], found)
    draw_memory(panels[2], found)
    panels[2].set_xlabel("simulated hours", color=LIGHT.muted, fontsize=9)
    verdict = "passed" if not problems(found) else "failed"
    title = f"{found.setup.bundle}: a soak of {duration_words(found.duration_s)}, {verdict}"
    figure.text(0.04, 0.945, title, parse_math=False, weight="bold", color=LIGHT.ink, fontsize=14)
    small = (
        f"{counted(sum(found.faults_by_kind.values()), 'fault')}, "
        f"{counted(found.perceived.readings, 'reading')}, "
        f"{counted(found.perceived.stale, 'stale value')} published; "
        f"run in {duration_words(found.run.wall_s)}  ·  {found.setup.machine}"
    )
    figure.text(0.04, 0.908, small, parse_math=False, color=LIGHT.muted, fontsize=9)
    write_whole(file, figure_bytes(figure, "png"))


def draw_paths(axes: Any, found: Soak) -> None:
    """Draw the shares of the ticks by the path of their reading, stacked."""
    shares = path_shares(found)
    edges_h = [found.perceived.bin_s / 3600 * k for k in range(shares.shape[1] + 1)]
    below = np.zeros(shares.shape[1])
    for (path, color), share in zip(_PATHS.items(), shares, strict=True):
        axes.stairs(below + share, edges_h, baseline=below, fill=True, color=color, label=path)
        below = below + share
    axes.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticklabels=[])
    axes.set_yticklabels(("0", "50 %", "100 %"))
    axes.set_title("readings by path", loc="left", color=LIGHT.ink, fontsize=9.5, weight="bold")
    key = axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=8, handlelength=1
    )
    for text in key.get_texts():
        text.set_color(LIGHT.muted)


def path_shares(found: Soak) -> npt.NDArray[np.float64]:
    """Return the shares (4, bins) of each bin's ticks by path, and last those without a reading.

    Bins that the soak did not reach are left out.
    """
    bin_s = found.perceived.bin_s
    bins = [counts for k, counts in enumerate(found.perceived.timeline) if k * bin_s < found.duration_s]
    counts = np.array([[count.get(path, 0) for count in bins] for path in list(_PATHS)[:3]], np.float64)
    ticks = np.maximum(counts.sum(axis=0), bin_s / found.run.moment_s)  # a bin may hold one tick more
    shares = counts / ticks
    return np.vstack([shares, 1 - shares.sum(axis=0)])


def draw_faults(axes: Any, found: Soak) -> None:
    """Draw each fault as a bar, with one row per kind."""
    names = [kind.name for kind in KINDS]
    for row, name in enumerate(names):
        bars_h = [
            (fault.start_s / 3600, max((fault.end_s - fault.start_s) / 3600, 0.002 * found.run.hours))
            for fault in found.setup.faults
            if fault.kind == name
        ]
        axes.broken_barh(bars_h, (row - 0.36, 0.72), facecolors=LIGHT.arousal)
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), xticklabels=[])
    axes.set_yticklabels(names, fontsize=7)
    axes.grid(axis="y", color=LIGHT.rule, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title("faults", loc="left", color=LIGHT.ink, fontsize=9.5, weight="bold")


def draw_memory(axes: Any, found: Soak) -> None:
    """Draw resident memory, and the line fitted to it after the warm-up."""
    title, growth = "resident memory, MB", found.growth
    if growth.memory:
        hours, megabytes = np.array(growth.memory).T  # (n,) each
        axes.plot(hours, megabytes, color=LIGHT.valence, linewidth=1.2)
        lowest, highest = float(megabytes.min()), float(megabytes.max())
        room = max(5.0, 0.15 * (highest - lowest))  # a constant size shall look constant
        axes.set_ylim(lowest - room, highest + room)
        if growth.slope_mb_per_h is not None:
            kept = hours >= growth.warm_up_h
            ends_h = np.array([growth.warm_up_h, float(hours[-1])])
            fitted = megabytes[kept].mean() + growth.slope_mb_per_h * (ends_h - hours[kept].mean())
            axes.plot(ends_h, fitted, color=LIGHT.ink, linewidth=1, linestyle="--")
            title += (
                f"; {growth.slope_mb_per_h:+.2f} per simulated hour after {growth.warm_up_h:.2g} h of warm-up"
            )
    axes.grid(color=LIGHT.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=9.5, weight="bold")
