"""The data manifest: JSON lines, one item a line. Read with every check at once, written atomically.

In: a file, or several that are checked as one, and the media root that their paths start from. Out: `Item`s that are
known to be sound, or one `ManifestError` that holds every problem with its line number. What makes an item sound stands in `rules`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.item import CONSTRUCTS, PAIRINGS, SPLITS, TASKS, Item, Placed, Problem, content_sha256
from vaemotion.data.rules import check_leaks, check_licenses, check_media, check_splits, item_problems

__all__ = [
    "CONSTRUCTS",
    "PAIRINGS",
    "SPLITS",
    "TASKS",
    "Item",
    "ManifestError",
    "Placed",
    "Problem",
    "content_sha256",
    "read_manifest",
    "read_manifests",
    "summary",
    "validate",
    "write_manifest",
]


class ManifestError(UserError):
    """Manifests that cannot be used; ``problems`` holds everything that is wrong with them, in their order."""

    def __init__(self, manifests: Sequence[Path], problems: Sequence[Problem]) -> None:
        order = {path: number for number, path in enumerate(manifests)}
        self.problems = tuple(sorted(problems, key=lambda problem: (order[problem.manifest], problem.line)))
        noun = "problem" if len(problems) == 1 else "problems"
        several = len(manifests) > 1
        subject = f"{len(manifests)} manifests have" if several else f"{manifests[0]} has"
        listed = "".join(
            f"\n  {f'{p.manifest}, ' if several else ''}line {p.line}: {p.message}" for p in self.problems
        )
        super().__init__(f"{subject} {len(problems)} {noun}, mend the lines named here:{listed}")


def read_manifest(path: Path, media_root: Path, *, check_hashes: bool = False) -> list[Item]:
    """Read and check a manifest.

    Raises ManifestError with all problems: see `rules`; with ``check_hashes`` also media whose SHA-256 differs
    (this reads every file once, those of items with several media twice).
    """
    return [placed.item for placed in read_manifests([path], media_root, check_hashes=check_hashes)]


def read_manifests(
    manifests: Sequence[Path],
    media_root: Path | None,
    *,
    check_hashes: bool = False,
    allowed_licenses: Sequence[str] | None = None,
) -> list[Placed]:
    """Read several manifests and check them as one: ids are distinct, and works, creators and media keep to their split,
    across them all. Without ``media_root`` no medium is looked at; None in ``allowed_licenses`` allows every licence.

    Raises ManifestError with all problems, UsageError for a manifest that is given twice.
    """
    if len({path.resolve() for path in manifests}) < len(manifests):
        raise UsageError(f"each manifest must be given once, got {', '.join(map(str, manifests))}")
    items: list[Placed] = []
    problems: list[Problem] = []
    for path in manifests:
        found, wrong = _read_lines(path)
        items += found
        problems += wrong
    problems += check_splits(items)
    missing = [] if media_root is None else check_media(items, media_root, check_hashes=check_hashes)
    # Files are hashed one by one only where all of them are there.
    problems += missing + check_leaks(items, None if missing or not check_hashes else media_root)
    if allowed_licenses is not None:
        problems += check_licenses(items, allowed_licenses)
    if problems:
        raise ManifestError(manifests, problems)
    return items


def _read_lines(path: Path) -> tuple[list[Placed], list[Problem]]:
    """The sound items of one manifest, and what is wrong with the other lines by themselves."""
    items: list[Placed] = []
    problems: list[Problem] = []
    for number, line in _lines(path):
        try:
            values = _parse(line)
        except ValueError as error:
            problems.append(Problem(path, number, str(error)))
            continue
        if wrong := item_problems(values):
            problems.extend(Problem(path, number, message) for message in wrong)
        else:
            items.append(Placed(path, number, _item(values)))
    if not items and not problems:
        problems.append(Problem(path, 0, "there is no item in it"))
    return items, problems


def validate(
    manifests: Sequence[Path],
    media_root: Path,
    *,
    check_hashes: bool = True,
    allow_licenses: str | None = None,
) -> None:
    """Check manifests as one, with their media, and print one line on what each holds.

    ``allow_licenses``: SPDX identifiers separated by commas, None for any. Raises ManifestError, and UsageError for an
    empty list of licences.
    """
    allowed = None if allow_licenses is None else _split_licenses(allow_licenses)
    items = read_manifests(manifests, media_root, check_hashes=check_hashes, allowed_licenses=allowed)
    for path in manifests:
        mine = [placed.item for placed in items if placed.manifest == path]
        print(f"{path}: {summary(mine, ' are sound')}")
    if len(manifests) > 1:
        print(f"together: {summary([placed.item for placed in items], ' are sound')}")


def _split_licenses(text: str) -> list[str]:
    allowed = [name for part in text.split(",") if (name := part.strip())]
    if not allowed:
        raise UsageError(f"--allow-licenses must name SPDX licences separated by commas, got {text!r}")
    return allowed


def summary(items: Sequence[Item], verdict: str = "") -> str:
    """For example "544 items of 544 works (train 435, test 109)"; the verdict stands before the bracket."""
    works = len({item.work_id for item in items})
    counts = ", ".join(
        f"{split} {count}" for split in SPLITS if (count := sum(item.split == split for item in items))
    )
    return f"{len(items)} items of {works} works{verdict} ({counts})"


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
