"""Tables of clips in published layouts: which part of which video shows what.

In: the table of VGGSound (``youtube_id,start,label,split`` without a header), of AudioSet (``# YTID,
start_seconds, end_seconds, positive_labels``, with ``class_labels_indices.csv`` beside it for the labels'
names), any CSV file with a header that names id, start, end and label, or FineVideo's JSON files (a folder of
one per video, whose scenes are the clips). Out: `ClipRow`s, and the file of each in a folder of videos.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaemotion.contract.errors import UserError

VGGSOUND_S = 10.0  # every clip of VGGSound
# A file that is longer than its clip by less is the clip itself, cut before.
CUT_S = 1.0
LABEL_NAMES = "class_labels_indices.csv"  # AudioSet's: index, mid, display_name
# By column: the names that tables give it, folded.
_COLUMNS = {
    "id": ("id", "youtubeid", "ytid", "videoid", "video", "key", "file", "filename"),
    "start": ("start", "startseconds", "starts", "starttime", "t0", "begin"),
    "end": ("end", "endseconds", "ends", "endtime", "t1"),
    "label": ("label", "class", "caption", "positivelabels", "labels"),
    "split": ("split", "set", "subset"),
}
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}


@dataclass(frozen=True)
class ClipRow:
    """One clip of a table. ``end_s`` None: the end of the file. ``split`` None: the table names none."""

    video: str
    start_s: float
    end_s: float | None
    label: str | None = None
    split: str | None = None
    creator: str | None = None


def read_table(table: Path) -> list[ClipRow]:
    """Read a table of clips. Raises UserError for a file in another layout, with the row."""
    if table.is_dir():
        files = sorted(table.rglob("*.json"))
        if not files:
            raise UserError(f"--csv {table} is a folder without .json files; FineVideo has one per video")
        return [row for file in files for row in _scenes(file)]
    if table.suffix.lower() == ".json":
        return list(_scenes(table))
    try:
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--csv {table} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--csv {table} cannot be read as UTF-8 text: {error}") from None
    lines = list(csv.reader(text.splitlines(), skipinitialspace=True))
    rows = [(number, line) for number, line in enumerate(lines, 1) if any(line)]
    comments = [line for _, line in rows if line[0].startswith("#")]
    rows = [(number, line) for number, line in rows if not line[0].startswith("#")]
    if not rows:
        raise UserError(f"--csv {table} has no rows")
    columns, has_header = _columns(table, comments, rows[0][1])
    names = _label_names(table.parent / LABEL_NAMES)
    return [_row(table, number, line, columns, names) for number, line in rows[has_header:]]


def _folded(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _columns(
    table: Path, comments: Sequence[Sequence[str]], first: Sequence[str]
) -> tuple[dict[str, int], bool]:
    """Return the place of each column, and True where the first row names them."""
    for header in (*comments, first):
        names = [_folded(name) for name in header]
        found = {
            column: next(place for place, name in enumerate(names) if name in known)
            for column, known in _COLUMNS.items()
            if any(name in known for name in names)
        }
        if "id" in found and ("start" in found or "label" in found):
            return found, header is first
    if len(first) == 4 and _number(first[1]) is not None:
        fourth = "label" if _number(first[2]) is not None else "split"
        return {"id": 0, "start": 1, "end" if fourth == "label" else "label": 2, fourth: 3}, False
    raise UserError(
        f"--csv {table} has no header that names id, start, end and label, and is not in the layout of "
        f"VGGSound (id, start, label, split) or AudioSet; its first row is {', '.join(first)!r}"
    )


def _row(
    table: Path, number: int, line: Sequence[str], columns: Mapping[str, int], names: Mapping[str, str]
) -> ClipRow:
    values = {column: line[place].strip() for column, place in columns.items() if place < len(line)}
    start_s, end_s = (_number(values[name]) if values.get(name) else None for name in ("start", "end"))
    unread = [name for name in ("start", "end") if values.get(name) and _number(values[name]) is None]
    if unread or not values.get("id"):
        raise UserError(
            f"{table}, line {number}: an id and times in seconds are needed, got {', '.join(line)!r}"
        )
    start_s = start_s or 0.0
    if end_s is None and "end" not in columns and "start" in columns:
        end_s = start_s + VGGSOUND_S
    if end_s is not None and end_s <= start_s:
        raise UserError(
            f"{table}, line {number}: its end ({end_s:g}) must come after its start ({start_s:g})"
        )
    split = values.get("split", "").lower()
    return ClipRow(
        values["id"],
        start_s,
        end_s,
        _label(values.get("label", ""), names),
        _SPLITS.get(split, "test" if split in ("test", "eval") else None),
    )


def _label(text: str, names: Mapping[str, str]) -> str | None:
    """Return a label in words; of AudioSet's identifiers those that have a name."""
    if not text.startswith("/"):
        return text or None
    known = [names[mid] for part in text.split(",") if (mid := part.strip()) in names]
    return "; ".join(known) or None


def _label_names(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as opened:
        return {row["mid"]: row["display_name"] for row in csv.DictReader(opened) if row.get("mid")}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def _scenes(file: Path) -> Iterator[ClipRow]:
    """Yield the scenes of one video of FineVideo."""
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        video = Path(values.get("original_video_filename") or file.stem).stem
        scenes = values.get("content_metadata", values)["scenes"]
        found = [
            (_seconds(s["timestamps"]["start_timestamp"]), s["timestamps"]["end_timestamp"], s)
            for s in scenes
        ]
        creator = values.get("youtube_channel")
        rows = [
            ClipRow(video, start_s, _seconds(end), scene.get("title"), None, creator)
            for start_s, end, scene in found
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not in FineVideo's layout (content_metadata, scenes, timestamps): {error}"
        ) from None
    yield from (row for row in rows if row.end_s is not None and row.end_s > row.start_s)


def _seconds(timestamp: str) -> float:
    """Read "00:01:02.500". Raises ValueError."""
    seconds = 0.0
    for part in timestamp.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def file_of(row: ClipRow, files: Mapping[str, Path]) -> tuple[Path, bool] | None:
    """Find the file of a clip, and whether its name says that it was cut to the clip already.

    ``files``: by their names without the suffix. Known names of cut clips are ID_START with six digits
    (VGGSound), ID_START_END in seconds or milliseconds, with an underscore or a hyphen between the times; a
    whole video is named by its id. All of them may begin with "Y".
    """
    starts = [f"{row.start_s:06.0f}", f"{row.start_s:g}", f"{1000 * row.start_s:.0f}", f"{row.start_s:.3f}"]
    cuts = [f"{row.video}_{start}" for start in starts]
    if row.end_s is not None:
        ends = [f"{row.end_s:06.0f}", f"{row.end_s:g}", f"{1000 * row.end_s:.0f}", f"{row.end_s:.3f}"]
        cuts += [f"{cut}{dash}{end}" for cut, end in zip(tuple(cuts), ends, strict=True) for dash in "_-"]
    stem = Path(row.video).stem if Path(row.video).suffix else row.video
    for names, is_cut in ((cuts, True), ((row.video, stem), False)):
        for name in _with_y(names):
            if name in files:
                return files[name], is_cut
    return None


def _with_y(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield name
        yield f"Y{name}"
