"""Recordings that stand in for synthesized sources of a soundscape.

In: a manifest of named recordings, such as that of ``vaemotion data build esc10``. Out: recordings by source
and split. A recording is heard in scenes of its own split alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.contract.errors import UserError
from vaemotion.contract.prompts import folded
from vaemotion.contract.terminal import tell
from vaemotion.contract.words import counted
from vaemotion.data.manifest.item import Item
from vaemotion.data.manifest.loader import load_clip
from vaemotion.data.manifest.manifest import read_manifest
from vaemotion.data.soundscapes.scene import DURATION_S, Float32, Scene
from vaemotion.data.soundscapes.sources import SOURCES, normalized

# Names of recordings that are no source's own name, and the source that they are like.
_LIKE = {"chainsaw": "drill", "helicopter": "engine", "rooster": "birds", "car horn": "traffic"}
_SHARE = 0.5  # of the sources that could be recorded


@dataclass(frozen=True)
class Recordings:
    """Recordings below a media root by the number of a source and split."""

    media_root: Path
    items: dict[tuple[int, str], list[Item]] = field(default_factory=dict[tuple[int, str], list[Item]])

    def choose(self, scene: Scene, split: str, rng: np.random.Generator) -> dict[int, Item]:
        """Choose recordings for about half of the scene's sources that have any."""
        chosen: dict[int, Item] = {}
        for number in scene.shares:
            found = self.items.get((number, split), [])
            if found and rng.random() < _SHARE:
                chosen[number] = found[int(rng.integers(len(found)))]
        return chosen

    def sound(self, item: Item) -> Float32:
        """Return a recording, repeated or cut to ``DURATION_S``, with an RMS of 1.

        Raises MediaError for one that cannot be decoded.
        """
        samples = load_clip(item, self.media_root).samples
        assert samples is not None, "the manifest's rules: a recording on the audio path has sound"
        return normalized(np.resize(samples, round(DURATION_S * SAMPLE_RATE_HZ)))


def open_recordings(manifest: Path, media_root: Path | None = None) -> Recordings:
    """Read the recordings of a manifest whose label or answer names a source; the others are counted.

    ``media_root``: None is the manifest's folder. Raises ManifestError, and UserError where none is named.
    """
    recordings = Recordings(media_root or manifest.parent)
    left_out = 0
    for item in read_manifest(manifest, recordings.media_root):
        number = _source_named(item.label or item.answer or "")
        if number is None or item.modality != "audio":
            left_out += 1
        else:
            recordings.items.setdefault((number, item.split), []).append(item)
    if not recordings.items:
        names = ", ".join([*(source.name for source in SOURCES), *_LIKE])
        raise UserError(f"{manifest} has no recording of a source; labels that are read: {names}")
    if left_out:
        tell(f"left out: {counted(left_out, 'recording')} that are like no source of a soundscape")
    return recordings


def _source_named(label: str) -> int | None:
    wanted = folded(label)
    wanted = folded(_LIKE.get(wanted, wanted))
    return next((number for number, source in enumerate(SOURCES) if folded(source.name) == wanted), None)
