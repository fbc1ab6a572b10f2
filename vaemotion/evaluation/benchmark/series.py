"""Labels that change over time: the model reads a window each second, and each is compared with its label.

In: items with series of labels. Out: one `WindowRow` per window, and per work and pooled the agreement with
the labels. A film is decoded a few seconds at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from vaemotion.contract.front_end import Clip, FrontEnd
from vaemotion.contract.prediction import Affect
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.clips.source import window_span_s
from vaemotion.data.manifest.item import Item, label_at
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.evaluation.benchmark.rows import (
    DIMENSIONS,
    Array,
    Bootstrap,
    Estimate,
    grouped,
    path_order,
    time_blocks,
)
from vaemotion.evaluation.metrics import ccc, pcc, rmse

STEP_S = 1.0  # between two windows
DECODED_S = 8.0  # of window ends that are decoded at once
BEYOND_S = 1.0  # the last frame of a medium may be shown this long
FEWEST_WINDOWS = 5  # of a work and dimension
ALL_WORKS = "all works"


class WindowConstants(Protocol):
    """Constants of a model that reads windows."""

    @property
    def front_end(self) -> FrontEnd: ...
    @property
    def emotions(self) -> tuple[str, ...]: ...


@runtime_checkable
class ReadsWindows(Protocol):
    """A predictor that reads single windows of a clip."""

    @property
    def constants(self) -> WindowConstants: ...

    def affects(self, clip: Clip, path: str, ends_s: Sequence[float]) -> list[tuple[Affect, Affect | None]]:
        """Return the expressed and the induced affect of the windows that end at these times."""
        ...


@dataclass(frozen=True)
class WindowRow:
    """The affect predicted for the window that ends at ``now_s``, with its labels; a label may be None.

    ``now_s``: in seconds from the item's ``t0``. ``affect``: of the construct that the labels are about.
    """

    item: Item
    path: str
    now_s: float
    valence: float | None
    arousal: float | None
    affect: Affect


@dataclass(frozen=True)
class SeriesResult:
    """Agreement over time of one dimension, in one work or in ``ALL_WORKS``.

    Pooled intervals are over works, those of one work over blocks of time. ``mean_rmse``: RMSE of the mean
    predictor.
    """

    source: str
    construct: str
    path: str
    own_path: str
    dimension: str
    work: str
    windows: int
    works: int
    ccc: Estimate
    pcc: Estimate
    rmse: Estimate
    mean_rmse: float


def rated_ends_s(item: Item) -> list[float]:
    """Return the ends of the windows that have a label, a second apart, from the item's ``t0``."""
    series = [s for s in (item.valence_series, item.arousal_series) if s is not None]
    assert series, "an item with series_rate_hz has a series"
    assert item.series_rate_hz is not None, "the manifest's rules: a series comes with its rate"
    start_s = item.series_start_s - item.reaction_lag_s
    end_s = start_s + (max(map(len, series)) - 1) / item.series_rate_hz
    if item.t1 is not None:
        end_s = min(end_s, item.t1 - (item.t0 or 0.0))
    first, last = math.ceil(start_s / STEP_S - EPSILON_S), math.floor(end_s / STEP_S + EPSILON_S)
    return [k * STEP_S for k in range(max(1, first), last + 1)]


def decoded_parts(
    item: Item, media_root: Path, ends_s: Sequence[float], front_end: FrontEnd
) -> Iterator[tuple[Clip, float, list[float]]]:
    """Decode what the windows at ``ends_s`` read, some at a time.

    Yields each part with its start and the ends that it covers, in seconds from the item's ``t0``. Windows
    beyond the end of the medium are left out. Raises MediaError.
    """
    hop_s, span_s = front_end.windows.frame_hop_s, window_span_s(front_end)
    at_once = max(1, round(DECODED_S / STEP_S))
    for first in range(0, len(ends_s), at_once):
        covered = list(ends_s[first : first + at_once])
        # On the grid of frames, and thereby on that of the log-mel: windows are those of the whole medium.
        start_s = max(0, math.floor((covered[0] - span_s) / hop_s)) * hop_s
        t0_s = item.t0 or 0.0
        # One frame more: a window sees the frame that appears at its end.
        t1_s = min(math.inf if item.t1 is None else item.t1, t0_s + covered[-1] + hop_s)
        part = Media(item.video, item.image, item.audio, t0_s + start_s, t1_s)
        clip = load_clip(part, media_root, frame_grid_s=hop_s)
        is_still = item.image is not None and clip.samples is None
        held = [end_s for end_s in covered if is_still or end_s - start_s <= clip.duration_s + BEYOND_S]
        if held:
            yield clip, start_s, held
        if len(held) < len(covered):
            return


def window_rows(
    item: Item, path: str, predict: ReadsWindows, clip: Clip, start_s: float, ends_s: Sequence[float]
) -> list[WindowRow]:
    """Read windows of a part that begins at ``start_s``.

    None where the model does not predict the item's construct.
    """
    read = predict.affects(clip, path, [end_s - start_s for end_s in ends_s])
    affects = [expressed if item.construct == "expressed" else induced for expressed, induced in read]
    return [
        WindowRow(item, path, now_s, *label_at(item, now_s), affect)
        for now_s, affect in zip(ends_s, affects, strict=True)
        if affect is not None
    ]


def series_results(rows: Sequence[WindowRow], bootstrap: Bootstrap) -> tuple[SeriesResult, ...]:
    """Compute results per source, construct, path and dimension: of all works together, and of each."""
    results: list[SeriesResult] = []
    for alike in grouped(
        rows, lambda r: (r.item.source, str(r.item.construct), *path_order(r.path, r.item.modality))
    ):
        for dimension in DIMENSIONS:
            labeled = [row for row in alike if getattr(row, dimension) is not None]
            by_work = grouped(labeled, lambda row: (row.item.work_id,))
            enough = [work for work in by_work if len(work) >= FEWEST_WINDOWS]
            if len(enough) > 1:
                together = [row for work in enough for row in work]
                works = [row.item.work_id for row in together]
                results.append(_result(together, dimension, ALL_WORKS, works, bootstrap))
            for work in enough:
                blocks = time_blocks(len(work), STEP_S)
                results.append(_result(work, dimension, work[0].item.work_id, blocks, bootstrap))
    return tuple(results)


def _result(
    rows: Sequence[WindowRow], dimension: str, work: str, groups: Sequence[str], bootstrap: Bootstrap
) -> SeriesResult:
    predicted = np.array([getattr(row.affect, dimension) for row in rows], np.float64)
    truth = np.array([getattr(row, dimension) for row in rows], np.float64)

    def estimate(metric: Callable[[Array, Array], float]) -> Estimate:
        return bootstrap.estimate(lambda picked: metric(predicted[picked], truth[picked]), groups)

    first = rows[0]
    return SeriesResult(
        source=first.item.source,
        construct=str(first.item.construct),
        path=first.path,
        own_path=first.item.modality,
        dimension=dimension,
        work=work,
        windows=len(rows),
        works=len({row.item.work_id for row in rows}),
        ccc=estimate(ccc),
        pcc=estimate(pcc),
        rmse=estimate(rmse),
        mean_rmse=float(truth.std()),
    )
