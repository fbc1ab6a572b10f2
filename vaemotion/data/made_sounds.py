"""Sets of sounds that we make ourselves, with labels by a published rule: their files and their manifest.

In: a `MadeSound` for each number. Out: a folder with ``sounds/``, ``manifest.jsonl`` and ``works.jsonl``,
which has the cues of each sound. Labels of a rule are no people's: the items are ``machine_made``, so stage 2
learns from them with ``emotion.machine_made_weight`` alone. Of ten numbers that follow each other the ninth
is validation and the tenth is test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from vaemotion.contract.emotions import emotion_distribution
from vaemotion.contract.errors import UserError
from vaemotion.contract.files import write_whole
from vaemotion.contract.terminal import Terminal, tell
from vaemotion.data.manifest.item import Item, content_sha256
from vaemotion.data.manifest.manifest import summary, write_manifest
from vaemotion.data.manifest.writer import flac_bytes

_SPLIT_OF_TEN = ("train",) * 8 + ("validation", "test")


@dataclass(frozen=True)
class MadeSound:
    """One sound. ``cues``: what its labels follow from. ``files``: further files by their suffix."""

    samples: npt.NDArray[np.float32]  # (n,) mono in [-1, 1]
    rate_hz: int
    valence: float
    arousal: float
    label: str
    license: str
    cues: Mapping[str, object]
    files: Mapping[str, bytes]


def split_of(index: int) -> str:
    """Return the split of a sound by its number."""
    return _SPLIT_OF_TEN[index % 10]


def build_sounds(out: Path, name: str, count: int, seed: int, make: Callable[[int], MadeSound]) -> None:
    """Write ``count`` sounds of a set below ``out``, and print one line about them.

    ``name``: of the set, "procedural-music"; it stands in every id. ``make``: makes the sound of a number.
    The manifest is written last, so its presence means that the sounds are complete. Raises UserError where
    ``out`` already holds a manifest, WriteError.
    """
    manifest = out / "manifest.jsonl"
    if manifest.exists():
        raise UserError(f"{manifest} exists already; give another folder with --out or delete it")
    items: list[Item] = []
    works: list[str] = []
    for index in track(range(count), name, console=Terminal(stderr=True)):
        sound = make(index)
        work_id = f"{name}-{seed}-{index:06d}"
        for suffix, content in {".flac": flac_bytes(sound.samples, sound.rate_hz), **sound.files}.items():
            write_whole(out / "sounds" / f"{work_id}{suffix}", content)
        items.append(_item(out, name, work_id, split_of(index), sound))
        works.append(json.dumps({"work_id": work_id, **sound.cues}, ensure_ascii=False))
    write_whole(out / "works.jsonl", "".join(line + "\n" for line in works))
    write_manifest(manifest, items)
    tell(f"{manifest}: {summary(items)}")


def _item(out: Path, name: str, work_id: str, split: str, sound: MadeSound) -> Item:
    audio = f"sounds/{work_id}.flac"
    shares = emotion_distribution(sound.valence, sound.arousal)
    return Item(
        id=work_id,
        audio=audio,
        pairing="none",
        task="emotion",
        label=sound.label,
        audible=True,
        modality="audio",
        valence=round(sound.valence, 6),
        arousal=round(sound.arousal, 6),
        construct="expressed",
        emotion_distribution=tuple(round(float(share), 6) for share in shares),
        machine_made=True,
        split=split,
        work_id=work_id,
        creator_id=f"{name}-{split}",  # one creator per split, because a creator may not be in two splits
        source=name,
        license=sound.license,
        sha256=content_sha256([out / audio]),
    )
