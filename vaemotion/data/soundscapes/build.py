"""Builder of procedural soundscapes, with a manifest.

In: a folder and a count. Out: ``sounds/*.flac`` (16 kHz, mono), ``works.jsonl`` with what each scene holds,
and ``manifest.jsonl``. Synthesized scenes are CC0-1.0; one with recordings names their licenses too.
"""

from __future__ import annotations

from pathlib import Path

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.made_sounds import MadeSound, build_sounds, split_of
from vaemotion.data.soundscapes.recordings import Recordings, open_recordings
from vaemotion.data.soundscapes.scene import (
    labels_of,
    level_db,
    sample_scene,
    scene_rng,
    scene_sound,
    variability_db,
)
from vaemotion.data.soundscapes.sources import KINDS, SOURCES


def build_soundscapes(
    out: Path,
    count: int,
    seed: int = 0,
    recordings: Path | None = None,
    media_root: Path | None = None,
) -> None:
    """Write ``count`` scenes below ``out``; scene i is the same for the same seed and recordings.

    ``recordings``: a manifest of sounds that stand in for about half of the sources that they are named
    after, ``media_root`` the root of its paths. Raises UserError where ``out`` holds a manifest, and for
    recordings that name no source.
    """
    recorded = open_recordings(recordings, media_root) if recordings is not None else None
    build_sounds(out, "procedural-soundscapes", count, seed, lambda index: made_scene(seed, index, recorded))


def made_scene(seed: int, index: int, recordings: Recordings | None = None) -> MadeSound:
    """Make one scene."""
    scene = sample_scene(seed, index)
    chosen = recordings.choose(scene, split_of(index), scene_rng(seed, index, 2)) if recordings else {}
    played = {number: recordings.sound(item) for number, item in chosen.items()} if recordings else {}
    sound = scene_sound(scene, seed, index, played)
    valence, arousal = labels_of(scene, sound)
    by_share = sorted(scene.shares, key=lambda number: -scene.shares[number])
    licenses = dict.fromkeys(["CC0-1.0", *sorted(item.license for item in chosen.values())])
    cues = {
        "shares": {SOURCES[number].name: round(scene.shares[number], 6) for number in by_share},
        **{kind: round(scene.share_of(kind), 6) for kind in KINDS},
        "level_db": round(level_db(sound), 2),
        "variability_db": round(variability_db(sound), 2),
        "recordings": [item.id for item in chosen.values()],
    }
    label = " and ".join(SOURCES[number].name for number in by_share)
    return MadeSound(sound, SAMPLE_RATE_HZ, valence, arousal, label, " AND ".join(licenses), cues, {})
