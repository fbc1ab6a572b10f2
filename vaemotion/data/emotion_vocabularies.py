"""Emotion vocabularies of published sets, and the table that joins them.

In: an item with votes for the emotions of its own set. Out: the distribution over another set of names, where
enough of the votes have a counterpart there. The table is ``emotion_vocabularies.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.prompts import folded
from vaemotion.data.manifest.item import Item

LEAST_MAPPED = 0.5 - 1e-6  # share of the votes; below it, the distribution would say more than the raters did


@dataclass(frozen=True)
class Vocabulary:
    """The names of a set's emotions, and the counterparts that some have in another vocabulary."""

    names: tuple[str, ...]
    same: Mapping[str, str]


@cache
def vocabularies() -> Mapping[str, Vocabulary]:
    """Read the shipped table: a vocabulary under each of its names, such as "gems-9"."""
    text = resources.files("vaemotion.data").joinpath("emotion_vocabularies.toml").read_text(encoding="utf-8")
    return {
        name: Vocabulary(tuple(entry["names"]), entry.get("same", {}))
        for name, entry in tomllib.loads(text).items()
    }


def mapped_distribution(item: Item, target: Sequence[str]) -> tuple[float, ...] | None:
    """Return the item's emotion distribution over the names of ``target``, in their order.

    A name keeps its votes where ``target`` has it, too; otherwise they go to its counterpart in the table.
    Votes for names with neither are dropped, and the rest is scaled to sum to 1. Returns None for an item
    without a distribution, and where less than half of the votes remain.
    """
    if item.emotion_distribution is None:
        return None
    places = {folded(name): place for place, name in enumerate(target)}
    names = EMOTIONS if item.emotion_names is None else item.emotion_names
    same = _counterparts(names)
    shares = [0.0] * len(target)
    for name, share in zip(names, item.emotion_distribution, strict=True):
        place = places.get(folded(name), places.get(same.get(folded(name), "")))
        if place is not None:
            shares[place] += share
    kept = sum(shares)
    return None if kept < LEAST_MAPPED else tuple(share / kept for share in shares)


def _counterparts(names: Sequence[str]) -> dict[str, str]:
    """Return the counterparts, folded, of the vocabulary that these names are; none for an unknown one."""
    wanted = {folded(name) for name in names}
    for vocabulary in vocabularies().values():
        if {folded(name) for name in vocabulary.names} == wanted:
            return {folded(name): folded(other) for name, other in vocabulary.same.items()}
    return {}
