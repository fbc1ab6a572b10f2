"""Tables about manifests: items per split, answers, licenses, affect, raters, seconds of sound.

In: manifests, read as one; the media only for the seconds. Out: tables on standard output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from rich.table import Table

from vaemotion.contract.media.files import MediaError, ffmpeg_name
from vaemotion.contract.terminal import Terminal
from vaemotion.data.manifest.item import SPLITS, Item
from vaemotion.data.manifest.manifest import read_manifests
from vaemotion.data.stats.charts import affect_table, balance_table, mean_and_sd

_ANSWERS_SHOWN = 30


def print_manifest_stats(manifests: Sequence[Path], media_root: Path | None) -> None:
    """Print tables about all items of the manifests.

    Seconds of sound are counted only with ``media_root``, and only for media that exist. Raises
    ManifestError, and MediaError for a sound file that cannot be opened.
    """
    items = [placed.item for placed in read_manifests(manifests, None)]
    console = Terminal()
    console.print(
        f"{len(items)} items of {len({item.work_id for item in items})} works "
        f"by {len({item.creator_id for item in items})} creators"
    )
    console.print(_split_table(items))
    answers = [item.answer for item in items if item.answer is not None]
    if answers:
        _print_answers(console, answers)
    licenses = [item.license for item in items]
    console.print(balance_table("license", sorted(set(licenses)), licenses, "items"))
    console.print(affect_table({"valence": _labels(items, "valence"), "arousal": _labels(items, "arousal")}))
    console.print(_rating_table(items))
    if media_root is not None:
        console.print(_sound_seconds(items, media_root))


def _sources(items: Iterable[Item]) -> list[str]:
    return sorted({item.source for item in items})


def _split_table(items: Sequence[Item]) -> Table:
    """Make a table of item counts by source and modality (rows) and split (columns)."""
    counts = Counter((item.source, item.modality, item.split) for item in items)
    table = Table("source", "modality", *SPLITS, "items")
    for source, modality in sorted({(item.source, item.modality) for item in items}):
        row = [counts[source, modality, split] for split in SPLITS]
        table.add_row(source, modality, *map(str, row), str(sum(row)))
    totals = [sum(item.split == split for item in items) for split in SPLITS]
    table.add_row("all", "", *map(str, totals), str(len(items)))
    return table


def _print_answers(console: Terminal, answers: Sequence[str]) -> None:
    names = [name for name, _ in sorted(Counter(answers).most_common(), key=lambda pair: (-pair[1], pair[0]))]
    console.print(balance_table("answer", names[:_ANSWERS_SHOWN], answers, "items"))
    if len(names) > _ANSWERS_SHOWN:
        console.print(f"and {len(names) - _ANSWERS_SHOWN} rarer answers")


def _labels(items: Iterable[Item], name: str) -> npt.NDArray[np.float64]:
    """Return one label of each item (n,); NaN stands for a missing one."""
    values = [getattr(item, name) for item in items]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _rating_table(items: Sequence[Item]) -> Table:
    """Make a table of affect and raters by source, because the sources' scales differ."""
    table = Table("source", "construct", "valence", "arousal", "raters per item")
    for source in _sources(items):
        mine = [item for item in items if item.source == source]
        constructs = sorted({item.construct for item in mine if item.construct is not None})
        affect = [mean_and_sd(_labels(mine, name)) for name in ("valence", "arousal")]
        table.add_row(source, ", ".join(constructs) or "none", *affect, _raters(mine))
    return table


def _raters(items: Sequence[Item]) -> str:
    given = [item.n_raters for item in items if item.n_raters is not None]
    if not given:
        return "not given"
    missing = len(items) - len(given)
    text = f"{min(given)} to {max(given)}, median {np.median(given):g}"
    return text + (f", {missing} items without" if missing else "")


def _sound_seconds(items: Sequence[Item], media_root: Path) -> Table:
    """Make a table of the seconds of distinct sound and the number of media by source."""
    table = Table("source", "seconds of sound", "media with sound", "missing")
    for source in _sources(items):
        parts = {
            (path, item.t0 or 0.0, item.t1)
            for item in items
            if item.source == source and (path := item.audio or item.video) is not None
        }
        there = [part for part in sorted(parts, key=str) if (media_root / part[0]).is_file()]
        durations_s = [_part_s(media_root / path, t0_s, t1_s) for path, t0_s, t1_s in there]
        heard = [duration_s for duration_s in durations_s if duration_s > 0]
        table.add_row(source, f"{sum(heard):.1f}", str(len(heard)), str(len(parts) - len(there)))
    return table


def _part_s(path: Path, t0_s: float, t1_s: float | None) -> float:
    """Compute the seconds of sound between ``t0_s`` and ``t1_s`` (None: the end) from the file's header.

    Returns 0 for a file without sound.
    """
    try:
        with av.open(ffmpeg_name(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                return 0.0
            end_s = (container.duration or 0) / av.time_base
    except FFmpegError as error:
        raise MediaError(f"{path} cannot be opened: {error.strerror or type(error).__name__}") from error
    return max(0.0, min(end_s, end_s if t1_s is None else t1_s) - t0_s)
