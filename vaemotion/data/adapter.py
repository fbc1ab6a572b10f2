"""What the adapters of published data sets do alike: name the media, hash them, deal the folds.

In: a folder as its publisher laid it out. Out: items and their folds; `published` makes a manifest of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.item import Item, content_sha256
from vaemotion.data.rules import stays_inside

N_FOLDS = 5
ItemsAndFolds = tuple[Sequence[Item], Sequence[int]]
"""What an adapter makes of a `Source`: items that are all train yet, and the fold of each."""
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A data set's folder, and the media root that a manifest's paths start from."""

    folder: Path
    media_root: Path

    @classmethod
    def below(cls, media_root: Path | None, folder: Path) -> Source:
        """``media_root``: None is the folder itself. Raises UserError without the folder, UsageError outside the root."""
        if not folder.is_dir():
            raise UserError(f"--from {folder} is not a folder, give the one that holds the data set")
        found = Path(os.path.realpath(folder))
        root = found if media_root is None else Path(os.path.realpath(media_root))
        if not found.is_relative_to(root):
            raise UsageError(f"--from {folder} must lie below --media-root {media_root}")
        return cls(found, root)

    def medium(self, name: str, named_by: str) -> tuple[str, str]:
        """A file of the folder as the manifest names it, and its SHA-256. ``named_by``: who says that it is there.

        Raises UserError when it is not.
        """
        if not stays_inside(name):
            raise UserError(f"{named_by} must name a file inside {self.folder}, got {name!r}")
        file = self.folder / name
        if not file.is_file():
            raise UserError(f"{named_by} names {name}, which is not in {self.folder}: get the whole data set")
        return file.relative_to(self.media_root).as_posix(), content_sha256([file])


def reading(things: Sequence[T], name: str) -> Iterable[T]:
    """The things one by one, with a bar on standard error: reading a large set's media takes a while."""
    return track(things, f"reading {name}", console=Console(stderr=True))


def dealt_folds(groups: Sequence[str]) -> list[int]:
    """The fold of each item from its group's name: groups are ordered by their SHA-256 and dealt out in turn.

    A group is in one fold, the folds' numbers of groups differ by one at most, and the items' order does not matter.
    """
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    fold_of = {group: 1 + position % N_FOLDS for position, group in enumerate(ordered)}
    return [fold_of[group] for group in groups]
