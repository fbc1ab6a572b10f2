"""Builder of manifests of published data sets, with held-out folds that share nothing with the rest.

In: a folder in its publisher's layout. Out: a manifest; the media stay where they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vaemotion.contract.errors import UsageError, UserError
from vaemotion.contract.terminal import tell
from vaemotion.data.manifest.item import SPLITS, Item
from vaemotion.data.manifest.manifest import summary, write_manifest
from vaemotion.data.published.adapter import N_FOLDS, OFFICIAL_TEST, ItemsAndFolds, Source
from vaemotion.data.published.art_sets import artemis, vgmidi
from vaemotion.data.published.human_labels import bass, esc10, sievers
from vaemotion.data.published.liris_accede import liris_accede
from vaemotion.data.published.muvi import muvi
from vaemotion.data.published.oasis import oasis
from vaemotion.data.published.rated_music import deam, pmemo
from vaemotion.data.published.votes import emopia, emotify, wikiart_emotions

Adapter = Callable[[Source], ItemsAndFolds]
ADAPTERS: dict[str, Adapter] = {
    "sievers": sievers,
    "bass": bass,
    "oasis": oasis,
    "esc10": esc10,
    "artemis": artemis,
    "wikiart-emotions": wikiart_emotions,
    "vgmidi": vgmidi,
    "emopia": emopia,
    "emotify": emotify,
    "pmemo": pmemo,
    "deam": deam,
    "muvi": muvi,
    "liris-accede": liris_accede,
}


@dataclass(frozen=True)
class HeldOut:
    """The folds, counted from 1, that become the splits test and validation; all others are train."""

    test_fold: int | None = None
    validation_fold: int | None = None

    def __post_init__(self) -> None:
        for name, fold in (("--test-fold", self.test_fold), ("--validation-fold", self.validation_fold)):
            if fold is not None and not 1 <= fold <= N_FOLDS:
                raise UsageError(f"{name} must be 1 to {N_FOLDS}, got {fold}")
        if self.test_fold is not None and self.test_fold == self.validation_fold:
            raise UsageError(f"--test-fold and --validation-fold must differ, got {self.test_fold} for both")

    def split(self, fold: int) -> str:
        """Return the split of a fold."""
        if fold in (OFFICIAL_TEST, self.test_fold):
            return "test"
        return "validation" if fold == self.validation_fold else "train"


def build(
    adapter: Adapter,
    folder: Path,
    out: Path,
    media_root: Path | None = None,
    test_fold: int | None = None,
    validation_fold: int | None = None,
    reaction_lag_s: float | None = None,
) -> None:
    """Write the manifest of a data set, and print which items it has and which were left out.

    ``reaction_lag_s``: seconds by which the raters of a series answered late; see `manifest.item.label_at`.
    Splits share no work, no creator and no medium. An item is left out when one of them is also in a split
    with precedence: test over validation over train. Raises UsageError for invalid folds, for a test fold of
    a set that has an official test part, and for a lag of a set without series; UserError for an existing
    manifest, a folder in another layout, duplicate ids, and a held-out fold without items.
    """
    held_out = HeldOut(test_fold, validation_fold)
    if out.exists():
        raise UserError(f"{out} exists already; give another file with --out or delete it")
    source = Source.below(media_root, folder)
    items, folds = adapter(source)
    if reaction_lag_s is not None:
        items = _with_lag(items, reaction_lag_s)
    if twice := [name for name, count in Counter(item.id for item in items).items() if count > 1]:
        raise UserError(f"{folder} has duplicate item ids ({len(twice)}), the first is {twice[0]}")
    if test_fold is not None and OFFICIAL_TEST in folds:
        raise UsageError(f"{folder} has a test part of its publisher; leave out --test-fold")
    for fold in (test_fold, validation_fold):
        if fold is not None and fold not in folds:
            known = ", ".join(map(str, sorted(set(folds) - {OFFICIAL_TEST})))
            raise UserError(f"fold {fold} of {folder} has no items; choose one of {known}")
    placed = [replace(item, split=held_out.split(fold)) for item, fold in zip(items, folds, strict=True)]
    kept = _without_shared(placed)
    write_manifest(out, kept)
    tell(f"{out}: {summary(kept)}")
    for description, count in source.left_out.items():
        if count:
            tell(f"left out: {count} {description}")
    for split in SPLITS:
        if count := sum(item.split == split for item in placed) - sum(item.split == split for item in kept):
            tell(f"left out: {count} of {split}, whose work, creator or bytes are also in a held-out split")


def _with_lag(items: Sequence[Item], reaction_lag_s: float) -> list[Item]:
    if not 0 <= reaction_lag_s < math.inf:
        raise UsageError(f"--reaction-lag must be seconds, at least 0, got {reaction_lag_s}")
    if all(item.series_rate_hz is None for item in items):
        raise UsageError("--reaction-lag is for sets that were rated over time; leave it out for this one")
    return [
        item if item.series_rate_hz is None else replace(item, reaction_lag_s=reaction_lag_s)
        for item in items
    ]


def _without_shared(items: Sequence[Item]) -> list[Item]:
    """Drop items whose work, creator or bytes are also in a split with precedence."""
    strongest: dict[tuple[str, str], int] = {}
    for item in items:
        for owner in _owners(item):
            strongest[owner] = max(strongest.get(owner, 0), SPLITS.index(item.split))
    return [
        item for item in items if all(strongest[owner] == SPLITS.index(item.split) for owner in _owners(item))
    ]


def _owners(item: Item) -> tuple[tuple[str, str], ...]:
    return ("work", item.work_id), ("creator", item.creator_id), ("bytes", item.sha256)
