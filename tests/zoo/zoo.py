"""The zoo as a whole: all files, and seeded samples that take from every family."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

from tests.zoo import codecs, containers, joined, pictures, situations, sounds, stills, timing
from tests.zoo.workshop import ZooFile


def zoo() -> list[ZooFile]:
    """Return every file, each name once."""
    made = (
        containers.containers(),
        codecs.codecs(),
        timing.rates(),
        timing.timing(),
        joined.joined(),
        situations.tracks(),
        situations.damage(),
        situations.names(),
        pictures.geometry(),
        pictures.color(),
        sounds.sounds(),
        stills.stills(),
    )
    files = [_as_newer_ffmpeg(file) for files in made for file in files]
    names = [file.name for file in files]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"two files of one name: {twice}"
    return files


def _as_newer_ffmpeg(file: ZooFile) -> ZooFile:
    """Let ffmpeg 5.1 count the time of Opus in Matroska as FFmpeg 8 does: what is skipped comes before 0."""
    is_opus = "libopus" in " ".join(file.commands) and file.name.endswith((".webm", ".mka", ".mkv"))
    return replace(file, reference_input="-copyts") if is_opus else file


def sample(files: list[ZooFile], n: int, seed: int) -> list[ZooFile]:
    """Return ``n`` files, the families in turn."""
    rng = random.Random(seed)
    families = defaultdict[str, list[ZooFile]](list)
    for file in files:
        families[file.family].append(file)
    for members in families.values():
        rng.shuffle(members)
    chosen: list[ZooFile] = []
    while len(chosen) < n and any(families.values()):
        chosen += [members.pop() for members in families.values() if members][: n - len(chosen)]
    return chosen
