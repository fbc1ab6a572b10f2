"""The data manifest: JSON lines, one item a line. Read with every check at once, written atomically.

In: a file and the media root that its paths start from. Out: `Item`s that are known to be sound, or one
`ManifestError` that holds every problem with its line number. What makes an item sound stands in `rules`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vaemotion.contract.errors import UserError
from vaemotion.data.item import CONSTRUCTS, PAIRINGS, SPLITS, TASKS, Item, Problem, content_sha256
from vaemotion.data.rules import check_media, check_splits, item_problems

__all__ = [
    "CONSTRUCTS",
    "PAIRINGS",
    "SPLITS",
    "TASKS",
    "Item",
    "ManifestError",
    "Problem",
    "content_sha256",
    "read_manifest",
    "validate",
    "write_manifest",
]


class ManifestError(UserError):
    """A manifest that cannot be used; ``problems`` holds everything that is wrong with it."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        noun = "problem" if len(problems) == 1 else "problems"
        listed = "".join(f"\n  line {p.line}: {p.message}" for p in self.problems)
        super().__init__(f"{path} has {len(problems)} {noun}, mend the lines named here:{listed}")


def read_manifest(path: Path, media_root: Path, *, check_hashes: bool = False) -> list[Item]:
    """Read and check a manifest.

    Raises ManifestError with all problems: see `rules`; with ``check_hashes`` also media whose SHA-256 differs
    (this reads every file once).
    """
    items: list[tuple[int, Item]] = []
    problems: list[Problem] = []
    for number, line in _lines(path):
        try:
            values = _parse(line)
        except ValueError as error:
            problems.append(Problem(number, str(error)))
            continue
        if wrong := item_problems(values):
            problems.extend(Problem(number, message) for message in wrong)
        else:
            items.append((number, _item(values)))
    problems.extend(check_splits(items))
    problems.extend(check_media(items, media_root, check_hashes=check_hashes))
    if not items and not problems:
        problems.append(Problem(0, "there is no item in it"))
    if problems:
        raise ManifestError(path, problems)
    return [item for _, item in items]


def validate(path: Path, media_root: Path, *, check_hashes: bool = True) -> None:
    """Check a manifest with its media and print one line on what it holds. Raises ManifestError."""
    items = read_manifest(path, media_root, check_hashes=check_hashes)
    works = len({item.work_id for item in items})
    counts = ", ".join(
        f"{split} {count}" for split in SPLITS if (count := sum(item.split == split for item in items))
    )
    print(f"{path}: {len(items)} items of {works} works are sound ({counts})")


def write_manifest(path: Path, items: Iterable[Item]) -> None:
    """Write items as JSON lines. Atomic: the file is whole under its name, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(item.to_json() + "\n" for item in items)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, give the path of a manifest (JSON lines)") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, give the path of a manifest (JSON lines)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a manifest: byte {error.start} is not UTF-8 text") from None
    # Only line feeds end a line: JSON strings may hold the other separators that splitlines() knows.
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parse(line: str) -> dict[str, Any]:
    """Raises ValueError with a plain message for anything but one JSON object with distinct keys."""
    try:
        values = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that anybody would write: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected one JSON object, got {type(values).__name__}")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # "\\ud800" alone is legal JSON, but no text and no file name
        raise ValueError("holds half a surrogate pair, which is not text") from None
    return values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"not JSON: {name} is not a number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field given twice: {sorted({name for name in names if names.count(name) > 1})}")
    return values


def _item(values: dict[str, Any]) -> Item:
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Item(**frozen)
