"""Common parts of the adapters of published data sets: name the media, hash them, assign folds.

In: a folder in its publisher's layout. Out: items and their folds, from which `build` makes a manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.progress import track

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.terminal import Terminal
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.rules import stays_inside

N_FOLDS = 5
# Fold of the items that the publisher holds out: they are in the split test whatever folds are asked for.
OFFICIAL_TEST = 0
ItemsAndFolds = tuple[Sequence[Item], Sequence[int]]
"""The result of an adapter: items, all of split train until folds are held out, and the fold of each."""
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A data set's folder, and the media root of a manifest's paths.

    ``left_out``: what an adapter did not use, counted under its description.
    """

    folder: Path
    media_root: Path
    left_out: Counter[str] = field(default_factory=Counter[str])

    @classmethod
    def below(cls, media_root: Path | None, folder: Path) -> Source:
        """Make a source from a folder below a media root; None for ``media_root`` is the folder itself.

        Raises UserError when the folder does not exist, UsageError when it is outside the media root.
        """
        if not folder.is_dir():
            raise UserError(f"--from {folder} is not a folder; give the folder of the data set")
        found = Path(os.path.realpath(folder))
        root = found if media_root is None else Path(os.path.realpath(media_root))
        if not found.is_relative_to(root):
            raise UsageError(f"--from {folder} must lie below --media-root {media_root}")
        return cls(found, root)

    def medium(self, name: str, named_by: str) -> tuple[str, str]:
        """Return a file's path relative to the media root, and its SHA-256.

        ``name``: the path relative to the folder. ``named_by``: the place that names it, for error
        messages. Raises UserError for a path outside the folder and for a missing file.
        """
        if not stays_inside(name):
            raise UserError(f"{named_by} must name a file inside {self.folder}, got {name!r}")
        file = self.folder / name
        if not file.is_file():
            raise UserError(
                f"{named_by} names {name}, which is not in {self.folder}; download the complete data set"
            )
        return file.relative_to(self.media_root).as_posix(), content_sha256([file])


def by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, list[str]]:
    """Find the files below a folder with one of the suffixes (lower case).

    Returns their paths relative to the folder, sorted, under their names without suffix.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file():
            found.setdefault(path.stem, []).append(path.relative_to(folder).as_posix())
    return found


def one_of_folders(folder: Path, names: Sequence[str], layout: str) -> str:
    """Return the first of ``names`` that is a folder in ``folder``. Raises UserError where there is none."""
    for name in names:
        if (folder / name).is_dir():
            return name
    raise UserError(f"{folder / names[0]} does not exist; --from takes {layout}")


def track_reading(entries: Sequence[T], name: str) -> Iterable[T]:
    """Iterate over a data set's entries with a progress bar on standard error."""
    return track(entries, f"reading {name}", console=Terminal(stderr=True))


def assign_folds(groups: Sequence[str]) -> list[int]:
    """Assign each item a fold, from the name of its group.

    Groups are ordered by their SHA-256 and assigned in turn. A group is in one fold, the folds differ by at
    most one group, and the items' order does not matter. Returns folds from 1 to ``N_FOLDS``.
    """
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    fold_of = {group: 1 + position % N_FOLDS for position, group in enumerate(ordered)}
    return [fold_of[group] for group in groups]
