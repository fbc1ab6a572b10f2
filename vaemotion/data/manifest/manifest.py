"""Data manifests: JSON lines with one item per line, checked completely when read, written atomically.

In: a file, or several that are checked as one, and the media root of their paths. Out: valid `Item`s, or one
`ManifestError` that lists every problem with its line number. `rules` defines a valid item.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.files import whole_file
from vaemotion.contract.terminal import tell
from vaemotion.contract.words import counted
from vaemotion.data.manifest.item import (
    CONSTRUCTS,
    PAIRINGS,
    SPLITS,
    TASKS,
    Item,
    PlacedItem,
    Problem,
    content_sha256,
    label_at,
)
from vaemotion.data.manifest.rules import (
    check_leaks,
    check_licenses,
    check_media,
    check_splits,
    item_problems,
)

__all__ = [
    "CONSTRUCTS",
    "PAIRINGS",
    "SPLITS",
    "TASKS",
    "Item",
    "ManifestError",
    "PlacedItem",
    "Problem",
    "content_sha256",
    "item_of_line",
    "label_at",
    "read_manifest",
    "read_manifests",
    "summary",
    "validate",
    "write_manifest",
]


class ManifestError(UserError):
    """Invalid manifests; ``problems`` holds every problem, in the order of manifests and lines."""

    def __init__(self, manifests: Sequence[Path], problems: Sequence[Problem]) -> None:
        order = {path: number for number, path in enumerate(manifests)}
        self.problems = tuple(sorted(problems, key=lambda problem: (order[problem.manifest], problem.line)))
        several = len(manifests) > 1
        subject = f"{len(manifests)} manifests have" if several else f"{manifests[0]} has"
        listed = "".join(
            f"\n  {f'{p.manifest}, ' if several else ''}line {p.line}: {p.message}" for p in self.problems
        )
        super().__init__(f"{subject} {counted(len(problems), 'problem')}; fix the lines listed:{listed}")


def read_manifest(path: Path, media_root: Path, *, check_hashes: bool = False) -> list[Item]:
    """Read and check a manifest.

    ``check_hashes`` also compares the SHA-256 of the media. That reads every file once, and the files of
    items with several media twice. Raises ManifestError with all problems; see `rules`.
    """
    return [placed.item for placed in read_manifests([path], media_root, check_hashes=check_hashes)]


def read_manifests(
    manifests: Sequence[Path],
    media_root: Path | None,
    *,
    check_hashes: bool = False,
    allowed_licenses: Sequence[str] | None = None,
) -> list[PlacedItem]:
    """Read several manifests and check them as one.

    Across all of them ids must be distinct, and no work, creator or medium may be in two splits. Without
    ``media_root`` the media are not checked; None for ``allowed_licenses`` allows every license. Raises
    ManifestError with all problems, UsageError for a manifest that is given twice.
    """
    if len({path.resolve() for path in manifests}) < len(manifests):
        raise UsageError(f"each manifest must be given once, got {', '.join(map(str, manifests))}")
    items: list[PlacedItem] = []
    problems: list[Problem] = []
    for path in manifests:
        found, wrong = _read_lines(path)
        items += found
        problems += wrong
    problems += check_splits(items)
    missing = [] if media_root is None else check_media(items, media_root, check_hashes=check_hashes)
    # Single files are hashed only when all of them exist.
    problems += missing + check_leaks(items, None if missing or not check_hashes else media_root)
    if allowed_licenses is not None:
        problems += check_licenses(items, allowed_licenses)
    if problems:
        raise ManifestError(manifests, problems)
    return items


def _read_lines(path: Path) -> tuple[list[PlacedItem], list[Problem]]:
    """Read the valid items of one manifest, and the problems that its other lines have by themselves."""
    items: list[PlacedItem] = []
    problems: list[Problem] = []
    for number, line in _lines(path):
        item = item_of_line(line)
        if isinstance(item, Item):
            items.append(PlacedItem(path, number, item))
        else:
            problems.extend(Problem(path, number, message) for message in item)
    if not items and not problems:
        problems.append(Problem(path, 0, "the manifest has no items"))
    return items, problems


def item_of_line(line: str) -> Item | list[str]:
    """Return the item of one line of a manifest, or all problems that the line has by itself."""
    try:
        values = _parse(line)
    except ValueError as error:
        return [str(error)]
    return item_problems(values) or _item(values)


def validate(
    manifests: Sequence[Path],
    media_root: Path,
    *,
    check_hashes: bool = True,
    allow_licenses: str | None = None,
) -> None:
    """Check manifests as one, with their media, and print a summary line for each.

    ``allow_licenses``: SPDX identifiers separated by commas, None for any. Raises ManifestError, and
    UsageError for an empty list of licenses.
    """
    allowed = None if allow_licenses is None else _split_licenses(allow_licenses)
    items = read_manifests(manifests, media_root, check_hashes=check_hashes, allowed_licenses=allowed)
    for path in manifests:
        mine = [placed.item for placed in items if placed.manifest == path]
        tell(f"{path}: {summary(mine, ' are valid')}")
    if len(manifests) > 1:
        tell(f"together: {summary([placed.item for placed in items], ' are valid')}")


def _split_licenses(text: str) -> list[str]:
    allowed = [name for part in text.split(",") if (name := part.strip())]
    if not allowed:
        raise UsageError(f"--allow-licenses must name SPDX licenses separated by commas, got {text!r}")
    return allowed


def summary(items: Sequence[Item], verdict: str = "") -> str:
    """Summarize items in words, as "544 items of 544 works (train 435, test 109)".

    ``verdict`` is inserted before the bracket.
    """
    works = len({item.work_id for item in items})
    counts = ", ".join(
        f"{split} {count}" for split in SPLITS if (count := sum(item.split == split for item in items))
    )
    return f"{len(items)} items of {works} works{verdict} ({counts})"


def write_manifest(path: Path, items: Iterable[Item]) -> None:
    """Write items as JSON lines; the file is complete under its name or absent. Raises WriteError."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(item.to_json() + "\n" for item in items)


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a manifest (JSON lines)") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the path of a manifest (JSON lines)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a manifest: byte {error.start} is not UTF-8 text") from None
    # Only line feeds end a line: JSON strings may contain the other separators that splitlines() splits at.
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parse(line: str) -> dict[str, Any]:
    """Parse one JSON object with distinct keys. Raises ValueError with a plain message for anything else."""
    try:
        values = json.loads(
            line, parse_int=_integer, parse_constant=_refuse_constant, object_pairs_hook=_distinct
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected one JSON object, got {type(values).__name__}")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # "\\ud800" alone is legal JSON, but neither text nor a file name
        raise ValueError("contains an unpaired surrogate, which is not text") from None
    return values


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python's limit for conversions from text
        raise ValueError(f"not JSON: a number of {len(digits)} digits is too long") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"not JSON: {name} is not a number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"field given twice: {', '.join(twice)}")
    return values


def _item(values: dict[str, Any]) -> Item:
    frozen: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None
    }
    return Item(**frozen)
