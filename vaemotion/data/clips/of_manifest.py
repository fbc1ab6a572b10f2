"""Clips of a data manifest, of any length: the lines stay on disk, and memory holds 8 bytes for each.

In: a manifest and a split. Out: a `ClipSource` of its synchronised videos; of several items about one part of
a video the first counts. Every line is checked once, as
`data.manifest.manifest` checks it; a file that is missing is a damaged clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.front_end import Clip
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.media.medium import Medium
from vaemotion.contract.terminal import Terminal
from vaemotion.contract.windows import EPSILON_S
from vaemotion.data.clips.source import ClipWindow, window_start_s
from vaemotion.data.manifest.item import SPLITS, Item, PlacedItem, Problem
from vaemotion.data.manifest.loader import Media, load_clip
from vaemotion.data.manifest.manifest import ManifestError, item_of_line
from vaemotion.data.manifest.rules import check_media

MOST_PROBLEMS = 100  # that are listed; a manifest may have as many as it has lines
UInt64 = npt.NDArray[np.uint64]


class ManifestClips:
    """A `ClipSource` of the audio-visual media of one split."""

    procedural = False

    def __init__(self, manifest: Path, media_root: Path, split: str, frame_grid_s: float) -> None:
        """Check the manifest and find its clips.

        ``frame_grid_s``: frames between the points of this grid are not kept. Raises ManifestError for an
        invalid manifest, UsageError for one without audio-visual media of the split.
        """
        self.manifest, self.media_root, self.frame_grid_s = manifest, media_root, frame_grid_s
        self.name = manifest.name
        self._lines = _lines_of_clips(manifest, split)  # (n, 2) byte offset and number of each line
        self.identity = f"{sha256_of(manifest)} {split} {frame_grid_s}"
        if not len(self._lines):
            raise UsageError(
                f"{manifest} has no clip with pictures and sound of split {split!r}; stage 1 needs videos "
                f"with sound (vaemotion data build clips)"
            )

    def __len__(self) -> int:
        return len(self._lines)

    def item(self, index: int) -> Item:
        """Read the item of clip ``index``."""
        with self.manifest.open("rb") as file:
            file.seek(int(self._lines[index, 0]))
            found = item_of_line(file.readline().decode())
        if not isinstance(found, Item):
            raise UserError(f"{self.manifest} was changed while it was read; start again")
        return found

    def window(self, index: int, seed: int, span_s: float) -> ClipWindow:
        """Decode a window of clip ``index``; see `ClipSource`."""
        item = self.item(index)
        placed = PlacedItem(self.manifest, int(self._lines[index, 1]), item)
        if wrong := check_media([placed], self.media_root, check_hashes=False):
            raise MediaError(wrong[0].message)
        begin_s = item.t0 or 0.0
        clip_s = _end_s(item, self.media_root) - begin_s
        start_s = begin_s + window_start_s(clip_s, span_s, seed, index)
        media = Media(item.video, item.image, item.audio, start_s, start_s + span_s + EPSILON_S)
        clip = load_clip(media, self.media_root, self.frame_grid_s)
        return ClipWindow(item, whole_window(clip, span_s), span_s, start_s - begin_s)


def whole_window(clip: Clip, span_s: float) -> Clip:
    """Return a clip that fills a window. Raises MediaError for one that is shorter, or lacks a modality."""
    if clip.samples is None or not clip.frames:
        raise MediaError("it has no sound" if clip.samples is None else "it has no pictures")
    if clip.duration_s < span_s - 0.1:
        raise MediaError(f"it lasts {clip.duration_s:.1f} s, a window {span_s:.1f} s")
    return clip


def _end_s(item: Item, media_root: Path) -> float:
    """Return the end of an item in its video: its own, or that of the file."""
    if item.t1 is not None or item.video is None:
        return item.t1 or 0.0
    return Medium(media_root / item.video).declared_end_s or 0.0


def _lines_of_clips(manifest: Path, split: str) -> npt.NDArray[np.int64]:
    """Check all lines; return byte offset and number of those that hold a new clip of the split, (n, 2)."""
    problems: list[Problem] = []
    found: list[int] = []
    seen: set[int] = set()
    homes = {"work_id": _Homes(), "creator_id": _Homes(), "sha256": _Homes()}
    ids = _Homes()
    lines = 0
    for offset, number, text in _read(manifest):
        lines += 1
        item = item_of_line(text)
        if not isinstance(item, Item):
            problems += [Problem(manifest, number, message) for message in item]
        else:
            ids.add(item.id, 0, number)
            for name, home in homes.items():
                home.add(getattr(item, name), SPLITS.index(item.split), number)
            part = hash((item.sha256, item.t0, item.t1))
            if item.split == split and _has_both(item) and part not in seen:
                seen.add(part)
                found += [offset, number]
        if len(problems) >= MOST_PROBLEMS:
            raise ManifestError([manifest], problems)
    if not lines:
        problems.append(Problem(manifest, 0, "the manifest has no items"))
    for first, second in ids.doubles():
        problems.append(Problem(manifest, second, f"its id was used in line {first}"))
    for name, home in homes.items():
        for first, second in home.in_two_splits():
            problems.append(Problem(manifest, second, f"its {name} is in another split in line {first}"))
    if problems:
        raise ManifestError([manifest], problems[:MOST_PROBLEMS])
    return np.array(found, np.int64).reshape(-1, 2)


def _has_both(item: Item) -> bool:
    return item.video is not None and item.pairing == "synchronised"


class _Homes:
    """Splits of many names, as 64-bit hashes."""

    def __init__(self) -> None:
        self._hashes: list[npt.NDArray[np.int64]] = []
        self._rows: list[tuple[int, int, int]] = []

    def add(self, name: str, split: int, line: int) -> None:
        self._rows.append((hash(name), split, line))
        if len(self._rows) == 1 << 16:
            self._pack()

    def _pack(self) -> None:
        self._hashes.append(np.array(self._rows, np.int64).reshape(-1, 3))
        self._rows = []

    def _neighbors(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return each two rows (hash, split, line) of one name that follow each other, in two arrays."""
        self._pack()
        rows = np.concatenate(self._hashes)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        same = rows[1:, 0] == rows[:-1, 0]
        return rows[:-1][same], rows[1:][same]

    def doubles(self) -> list[tuple[int, int]]:
        """Return the two line numbers of each name that was added twice."""
        first, second = self._neighbors()
        return list(zip(first[:MOST_PROBLEMS, 2].tolist(), second[:MOST_PROBLEMS, 2].tolist(), strict=True))

    def in_two_splits(self) -> list[tuple[int, int]]:
        """Return the two line numbers of each name that is in two splits."""
        first, second = self._neighbors()
        apart = first[:, 1] != second[:, 1]
        return list(
            zip(
                first[apart][:MOST_PROBLEMS, 2].tolist(),
                second[apart][:MOST_PROBLEMS, 2].tolist(),
                strict=True,
            )
        )


def _read(manifest: Path) -> Iterator[tuple[int, int, str]]:
    """Yield byte offset, number and text of each line that is not blank, with a progress bar."""
    try:
        file = manifest.open("rb")
        size = manifest.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{manifest} does not exist; give the path of a manifest (JSON lines)") from None
    except IsADirectoryError:
        raise UserError(f"{manifest} is a folder; give the path of a manifest (JSON lines)") from None
    with file, Progress(console=Terminal(stderr=True), transient=True) as progress:
        task = progress.add_task(f"checking {manifest.name}", total=size)
        offset = 0
        for number, line in enumerate(file, 1):
            try:
                text = line.decode().rstrip("\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{manifest} is not a manifest: byte {offset + error.start} is not UTF-8 text"
                ) from None
            if text.strip():
                yield offset, number, text
            offset += len(line)
            if number % 1000 == 0:
                progress.update(task, completed=offset)
