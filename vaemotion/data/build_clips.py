"""Builder of a manifest of clips from a folder of videos, or from a table of clips and their videos.

In: a folder, and a table in a published layout (`clip_tables`). Out: a manifest of clips that have pictures
that change, sound that can be heard, and the length of a window; the media stay where they are. What is left
out is counted by its reason. The splits share no video.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from rich.progress import track

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.front_end import SILENCE_RMS, FrontEnd
from vaemotion.contract.media.files import MediaError
from vaemotion.contract.media.medium import Medium
from vaemotion.contract.media.remarks import Remark
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.contract.words import counted, duration_words
from vaemotion.data.clip_tables import CUT_S, ClipRow, file_of, read_table
from vaemotion.data.clips.source import window_span_s
from vaemotion.data.manifest.cutter import cut
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.manifest import summary, write_manifest
from vaemotion.data.manifest.rules import stays_inside

PARTS = " (parts of one film)"  # behind the source's name
MOST_GAP_S = 10.0  # between two parts of one film; a tenth of a short one
# A picture changes when one of its cells, the means of its areas, differs by more than this of 255 levels.
CHANGE, CELLS = 4.0, 16


@dataclass(frozen=True)
class ClipsOptions:
    """Choices of a manifest of clips.

    ``license``: SPDX identifier of all clips. ``table``: see `clip_tables`. ``clip_s``: longer videos are
    cut into clips of this length. ``window_s``: the shortest clip; by default the default front end's window.
    ``validation``, ``test``: shares of the videos. ``parts_of_one_film``: where the videos are fewer than the
    splits, each split gets a part of every video. Raises UsageError for a missing license and for values out
    of range.
    """

    license: str | None
    table: Path | None = None
    source: str | None = None
    clip_s: float = 10.0
    window_s: float = field(default_factory=lambda: window_span_s(FrontEnd()))
    validation: float = 0.1
    test: float = 0.1
    parts_of_one_film: bool = False

    def __post_init__(self) -> None:
        if not (self.license or "").strip():
            raise UsageError(
                "--license is missing: give the SPDX identifier of the videos' license, such as CC-BY-4.0, "
                "or NOASSERTION where none is known"
            )
        if not 0 < self.window_s <= self.clip_s:
            raise UsageError(
                f"--window-s ({self.window_s:g}) must be above 0 and at most --clip-s ({self.clip_s:g})"
            )
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise UsageError(
                f"--validation ({self.validation:g}) and --test ({self.test:g}) must be at least 0 and leave "
                "a share for train"
            )


@dataclass(frozen=True)
class _Clip:
    """A clip that is kept. ``video``: the name of its source video, which is in one split only."""

    file: Path
    t0_s: float
    t1_s: float
    video: str
    label: str | None = None
    split: str | None = None
    creator: str | None = None

    @property
    def group(self) -> str:
        """The name that no two splits share: the creator where the table names one, else the video."""
        return self.creator or self.video


def build_clips(folder: Path, out: Path, media_root: Path | None, options: ClipsOptions) -> None:
    """Write the manifest, and print what it holds and what was left out, by reason.

    ``media_root`` None is the folder. Raises UserError for an existing manifest and where nothing is left,
    UsageError for a folder outside the media root, and for fewer videos than splits.
    """
    root = folder if media_root is None else media_root
    if not folder.is_dir():
        raise UserError(f"--from {folder} is not a folder; give the folder of the videos")
    if not folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"--from {folder} must lie below --media-root {root}")
    if out.exists():
        raise UserError(f"{out} exists already; give another file with --out or delete it")
    left_out: Counter[str] = Counter()
    files = _files(folder, root, _parts_folder(out), left_out)
    found = _from_folder(files) if options.table is None else _from_table(files, options.table, left_out)
    clips = _usable(found, root, options, left_out)
    clips, source = _placed(clips, out, root, options, left_out)
    items = _items(clips, root, source, options, left_out)
    if items:
        write_manifest(out, items)
        tell(f"{out}: {summary(items)}")
        tell(f"length: {duration_words(sum((item.t1 or 0.0) - (item.t0 or 0.0) for item in items))}")
    for reason, count in left_out.most_common():
        tell(f"left out: {count:,} with {reason}")
    if not items:
        raise UserError(f"{folder} has no clip that can be used; no manifest was written")


def _parts_folder(out: Path) -> Path:
    """Return the folder for the parts of films, which are made here and are no videos of their own."""
    return out.with_name(f"{out.stem}-parts")


def _files(folder: Path, root: Path, made: Path, left_out: Counter[str]) -> list[Path]:
    """Return all files below a folder that a manifest can name, in the order of their names.

    Those below ``made`` are none of them.
    """
    files: list[Path] = []
    inside = root.resolve()
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.resolve().is_relative_to(made.resolve()):
            continue
        if not path.resolve().is_relative_to(inside):
            left_out["a link that leaves the media root"] += 1
        elif not _can_be_named(_relative(path, root)):
            left_out["a name that is not UTF-8 or has a backslash"] += 1
        else:
            files.append(path)
    return files


def _relative(path: Path, root: Path) -> str:
    return path.resolve().relative_to(root.resolve()).as_posix()


def _can_be_named(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return stays_inside(name)


Found = Mapping[Path, Sequence[tuple[ClipRow, bool]]]
"""By file: the clips that a table names in it, and whether the file is the clip itself."""


def _from_folder(files: Sequence[Path]) -> Found:
    return {file: () for file in files}


def _from_table(files: Sequence[Path], table: Path, left_out: Counter[str]) -> Found:
    """Find the file of each of a table's clips."""
    by_name = {file.stem: file for file in reversed(files)}
    found: dict[Path, list[tuple[ClipRow, bool]]] = defaultdict(list)
    for row in read_table(table):
        place = file_of(row, by_name)
        if place is None:
            left_out["a video that is not in the folder"] += 1
        else:
            found[place[0]].append((row, place[1]))
    return found


# --- what is used -------------------------------------------------------------------------------------------


def _usable(found: Found, root: Path, options: ClipsOptions, left_out: Counter[str]) -> list[_Clip]:
    """Look into every file, and return the clips that have all that a window needs."""
    clips: list[_Clip] = []
    for file in track(sorted(found, key=os.fsencode), "looking at videos", console=Terminal(stderr=True)):
        try:
            medium = Medium(file)
        except MediaError:
            left_out["no video or sound that can be read"] += 1
            continue
        reason = _missing(medium)
        if reason is not None:
            left_out[reason] += max(1, len(found[file]))
            continue
        end_s = medium.declared_end_s or 0.0
        clips_of_file = _rows(file, end_s, found[file]) if found[file] else _parts(file, end_s, root, options)
        for clip in clips_of_file:
            reason = _fault(medium, clip, options.window_s)
            if reason is None:
                clips.append(clip)
            else:
                left_out[reason] += 1
    return clips


def _missing(medium: Medium) -> str | None:
    if not medium.has_sound:
        return "no sound"
    return None if medium.has_pictures else "no pictures"


def _parts(file: Path, end_s: float, root: Path, options: ClipsOptions) -> Iterator[_Clip]:
    """Yield the parts of a file, of one length, and the rest where it fills a window."""
    count = max(1, math.floor(end_s / options.clip_s))
    rest = end_s - count * options.clip_s >= options.window_s
    for number in range(count + rest):
        begin_s = number * options.clip_s
        clip_end_s = round(min(begin_s + options.clip_s, end_s), 3)
        yield _Clip(file, begin_s, clip_end_s, _relative(file, root))


def _rows(file: Path, end_s: float, rows: Sequence[tuple[ClipRow, bool]]) -> Iterator[_Clip]:
    """Yield the clips that a table names in a file."""
    for row, is_cut in rows:
        length_s = math.inf if row.end_s is None else row.end_s - row.start_s
        # Some name a cut clip by the video's id alone: it is no longer than the clip.
        begin_s = 0.0 if is_cut or end_s <= length_s + CUT_S else row.start_s
        clip_end_s = round(min(begin_s + length_s, end_s), 3)
        yield _Clip(file, begin_s, clip_end_s, row.video, row.label, row.split, row.creator)


def _fault(medium: Medium, clip: _Clip, window_s: float) -> str | None:
    """Return why a clip cannot be used, None for one that can."""
    if clip.t1_s - clip.t0_s < window_s - 1e-3:
        return "less than a window"
    if not _is_heard(medium, clip):
        return "silence"
    return None if _moves(medium, clip) else "a still picture"


def _is_heard(medium: Medium, clip: _Clip) -> bool:
    left = round(16_000 * (clip.t1_s - clip.t0_s))
    for block in medium.sound(clip.t0_s):
        if isinstance(block, Remark) or not block.size:
            continue
        part = block[:left]
        if np.sqrt(np.mean(np.square(part, dtype=np.float64))) > SILENCE_RMS:
            return True
        left -= len(part)
        if left <= 0:
            return False
    return False


def _moves(medium: Medium, clip: _Clip) -> bool:
    first: npt.NDArray[np.float32] | None = None
    converter = VideoReformatter()
    for shown in medium.pictures(clip.t0_s):
        if isinstance(shown, Remark) or shown.end_s <= clip.t0_s:
            continue
        if shown.time_s >= clip.t1_s:
            return False
        gray = cv2.cvtColor(shown.picture(converter), cv2.COLOR_RGB2GRAY)
        cells = cv2.resize(gray, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
        if first is None:
            first = cells
        elif np.abs(cells - first).max() > CHANGE:
            return True
    return False


# --- splits -------------------------------------------------------------------------------------------------


def _placed(
    clips: Sequence[_Clip], out: Path, root: Path, options: ClipsOptions, left_out: Counter[str]
) -> tuple[list[_Clip], str]:
    """Give each clip a split, and return the source's name, with a mark for parts of one film.

    The held-out splits of a table stay; its others are drawn from the rest.
    """
    named = options.table.stem if options.table is not None else root.resolve().name
    source = options.source or named or "clips"
    told = {clip.group: clip.split for clip in clips if clip.split not in (None, "train")}
    free = sorted({clip.group for clip in clips} - set(told), key=_hashed)
    shares = {
        split: share
        for split, share in (("test", options.test), ("validation", options.validation))
        if share and split not in told.values()
    }
    if len(free) > len(shares) or not clips:
        split_of = {**_drawn(free, shares), **told}
        return [replace(clip, split=split_of[clip.group]) for clip in clips], source
    if not options.parts_of_one_film:
        raise UsageError(
            f"{counted(len(free), 'usable video')} cannot be in {len(shares) + 1} splits (train, "
            f"{', '.join(shares)}); give more videos, --validation 0 --test 0 for train alone, or "
            "--parts-of-one-film for parts of each video with a gap between them"
        )
    return _parts_of_films(clips, out, root, options, left_out), source + PARTS


def _hashed(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(name)).digest()


def _drawn(groups: Sequence[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Return the split of each group, in their order. Each share holds at least one."""
    split_of = dict.fromkeys(groups, "train")
    first = 0
    for split, share in shares.items():
        count = max(1, round(share * len(groups)))
        split_of.update(dict.fromkeys(groups[first : first + count], split))
        first += count
    return split_of


def _parts_of_films(
    clips: Sequence[_Clip], out: Path, root: Path, options: ClipsOptions, left_out: Counter[str]
) -> list[_Clip]:
    """Cut each film into a file for each split, and return the clips of these files."""
    folder = _parts_folder(out)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"--out {out} must lie below --media-root {root}, where the parts are written, too")
    placed: list[_Clip] = []
    for video in dict.fromkeys(clip.video for clip in clips):
        mine = [clip for clip in clips if clip.video == video]
        film, labels = mine[0].file, {clip.label for clip in mine}
        label = mine[0].label if len(labels) == 1 else None
        for split, t0_s, t1_s in _shares(mine[0].t0_s, max(clip.t1_s for clip in mine), options):
            part = cut(film, t0_s, t1_s)
            if part is None:
                raise UserError(f"{film} cannot be cut exactly; turn it into .mp4 or .mkv first (ffmpeg)")
            file = folder / f"{film.stem}-{split}.{part.suffix}"
            write_whole(file, part.data)
            medium = Medium(file)
            for clip in _parts(file, t1_s - t0_s, root, options):
                # The file begins at a keyframe before the part.
                begin_s, end_s = (round(time_s + part.t0_s, 6) for time_s in (clip.t0_s, clip.t1_s))
                made = _Clip(file, begin_s, end_s, f"{video}, {split}", label, split)
                reason = _fault(medium, made, options.window_s)
                if reason is None:
                    placed.append(made)
                else:
                    left_out[reason] += 1
    return placed


def _shares(begin_s: float, end_s: float, options: ClipsOptions) -> list[tuple[str, float, float]]:
    """Return each split's part of a film, (split, from, to) in seconds, train first, with gaps between."""
    named = (("validation", options.validation), ("test", options.test))
    held_out = [(name, share) for name, share in named if share]
    gap_s = min(MOST_GAP_S, (end_s - begin_s) / 10)
    kept_s = end_s - begin_s - gap_s * len(held_out)
    lengths_s = [(name, max(share * kept_s, options.window_s)) for name, share in held_out]
    train_s = kept_s - sum(length_s for _, length_s in lengths_s)
    if train_s < options.window_s:
        raise UserError(
            f"a film of {duration_words(end_s - begin_s)} is too short for {len(held_out) + 1} splits of "
            f"windows of {options.window_s:.1f} s; give a longer one"
        )
    parts, at_s = [("train", begin_s, begin_s + train_s)], begin_s + train_s
    for name, length_s in lengths_s:
        parts.append((name, at_s + gap_s, at_s + gap_s + length_s))
        at_s += gap_s + length_s
    return parts


# --- items --------------------------------------------------------------------------------------------------


def _items(
    clips: Sequence[_Clip], root: Path, source: str, options: ClipsOptions, left_out: Counter[str]
) -> list[Item]:
    """Return the items; of files with the same bytes the first one counts."""
    items: list[Item] = []
    hashes: dict[Path, str] = {}
    owner: dict[str, Path] = {}
    numbers: Counter[Path] = Counter()
    for clip in track(clips, "hashing videos", console=Terminal(stderr=True)):
        if clip.file not in hashes:
            hashes[clip.file] = content_sha256([clip.file])
        sha256 = hashes[clip.file]
        if owner.setdefault(sha256, clip.file) != clip.file:
            left_out["the same bytes as another file"] += 1
            continue
        assert clip.split is not None
        assert options.license is not None
        name = _relative(clip.file, root)
        items.append(
            Item(
                id=f"{name}#{numbers[clip.file]}",
                video=name,
                t0=clip.t0_s,
                t1=clip.t1_s,
                pairing="synchronised",
                task="clip",
                label=clip.label,
                modality="audio-visual",
                split=clip.split,
                work_id=clip.video,
                creator_id=clip.group,
                source=source,
                license=options.license.strip(),
                sha256=sha256,
            )
        )
        numbers[clip.file] += 1
    return items
