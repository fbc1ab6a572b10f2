"""The picture of ``vaemotion soak``: what was perceived, what was wrong, and the memory, over simulated hours.

In: a ``Soak``. Out: a PNG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.faults import KINDS
from runtime.plot import LIGHT, picture
from runtime.soak_report import Soak, problems
from runtime.timeline import counted, duration_words, write_whole
from vaemotion.contract.errors import UserError

_SIZE_IN = (10.0, 7.2)
_TOPS = (0.845, 0.63, 0.285)  # of the panels, as shares of the height
_HEIGHTS = (0.15, 0.28, 0.2)
_PATHS = {"audio-visual": LIGHT.valence, "visual": LIGHT.visual, "audio": LIGHT.audio, "nothing": LIGHT.rule}


def plot_soak(found: Soak, file: Path) -> None:
    """Write the picture. Raises UserError where matplotlib is not installed."""
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
        axes.set(facecolor=LIGHT.paper, xlim=(0, max(found.hours, 1e-3)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LIGHT.rule)
        axes.tick_params(length=0, labelsize=8, colors=LIGHT.muted)
    draw_paths(panels[0], found)
    draw_faults(panels[1], found)
    draw_memory(panels[2], found)
    panels[2].set_xlabel("simulated hours", color=LIGHT.muted, fontsize=9)
    verdict = "passed" if not problems(found) else "failed"
    title = f"{found.bundle}: a soak of {duration_words(found.hours * 3600)}, {verdict}"
    figure.text(0.04, 0.945, title, parse_math=False, weight="bold", color=LIGHT.ink, fontsize=14)
    small = (
        f"{counted(sum(found.faults_by_kind.values()), 'fault')}, {counted(found.readings, 'reading')}, "
        f"{counted(found.stale, 'stale value')} published; {duration_words(found.wall_s)} of wall time  ·  {found.machine}"
    )
    figure.text(0.04, 0.908, small, parse_math=False, color=LIGHT.muted, fontsize=9)
    write_whole(file, picture(figure, "png"))


def draw_paths(axes: Any, found: Soak) -> None:
    """Shares of the moments by what a reading rested on."""
    shares = path_shares(found)
    edges_h = [found.bin_s / 3600 * k for k in range(shares.shape[1] + 1)]
    below = np.zeros(shares.shape[1])
    for (path, colour), share in zip(_PATHS.items(), shares, strict=True):
        axes.stairs(below + share, edges_h, baseline=below, fill=True, color=colour, label=path)
        below = below + share
    axes.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticklabels=[])
    axes.set_yticklabels(("0", "50 %", "100 %"))
    axes.set_title("what a reading rests on", loc="left", color=LIGHT.ink, fontsize=9.5, weight="bold")
    key = axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=8, handlelength=1
    )
    for text in key.get_texts():
        text.set_color(LIGHT.muted)


def path_shares(found: Soak) -> npt.NDArray[np.float64]:
    """(4, bins): of the moments of each bin those that rested on each path, and on nothing. Bins that were not reached are left out."""
    bins = [counts for k, counts in enumerate(found.timeline) if k * found.bin_s < found.hours * 3600]
    counts = np.array(
        [[bin_counts.get(path, 0) for bin_counts in bins] for path in list(_PATHS)[:3]], np.float64
    )
    moments = np.maximum(
        counts.sum(axis=0), found.bin_s / found.moment_s
    )  # a bin's edge may lie between two moments
    shares = counts / moments
    return np.vstack([shares, 1 - shares.sum(axis=0)])


def draw_faults(axes: Any, found: Soak) -> None:
    """Each fault as a bar, one row for each kind."""
    names = [kind.name for kind in KINDS]
    for row, name in enumerate(names):
        bars_h = [
            (fault.start_s / 3600, max((fault.end_s - fault.start_s) / 3600, 0.002 * found.hours))
            for fault in found.faults
            if fault.kind == name
        ]
        axes.broken_barh(bars_h, (row - 0.36, 0.72), facecolors=LIGHT.arousal)
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), xticklabels=[])
    axes.set_yticklabels(names, fontsize=7)
    axes.grid(axis="y", color=LIGHT.rule, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title("what was wrong", loc="left", color=LIGHT.ink, fontsize=9.5, weight="bold")


def draw_memory(axes: Any, found: Soak) -> None:
    """Resident memory, and the line fitted to it after the warm-up."""
    title = "resident memory, MB"
    if found.memory:
        hours, megabytes = np.array(found.memory).T  # (n,) each
        axes.plot(hours, megabytes, color=LIGHT.valence, linewidth=1.2)
        lowest, highest = float(megabytes.min()), float(megabytes.max())
        room = max(5.0, 0.15 * (highest - lowest))  # a flat line shall look flat
        axes.set_ylim(lowest - room, highest + room)
        if found.slope_mb_per_h is not None:
            kept = hours >= found.warm_up_h
            ends_h = np.array([found.warm_up_h, float(hours[-1])])
            middle = float(megabytes[kept].mean()), float(hours[kept].mean())
            axes.plot(
                ends_h, middle[0] + found.slope_mb_per_h * (ends_h - middle[1]), color=LIGHT.ink, linewidth=1, linestyle="--"
            )  # fmt: skip
            title += (
                f"; {found.slope_mb_per_h:+.2f} a simulated hour after {found.warm_up_h:.2g} h of warm-up"
            )
    axes.grid(color=LIGHT.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=9.5, weight="bold")
