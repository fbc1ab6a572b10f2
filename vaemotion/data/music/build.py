"""Builder of procedural music: rendered pieces with their scores and a manifest.

In: a folder, a count and a soundfont. Out: ``sounds/*.flac`` (44.1 kHz, mono), ``sounds/*.mid``,
``works.jsonl`` with the cues of each piece, and ``manifest.jsonl``. Scores are CC0-1.0. Their sound is made
of the soundfont's recordings, so that the license of an item names the soundfont's too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vaemotion.data.made_sounds import MadeSound, build_sounds
from vaemotion.data.music.cues import Cues, labels_of, sample_cues
from vaemotion.data.music.midi_file import midi_bytes
from vaemotion.data.music.score import compose
from vaemotion.data.music.synthesizer import RATE_HZ, Synthesizer, find_soundfont


def build_music(
    out: Path, count: int, seed: int = 0, soundfont: Path | None = None, license_name: str | None = None
) -> None:
    """Write ``count`` pieces below ``out``; piece i is the same for the same seed, soundfont and FluidSynth.

    Raises UserError without FluidSynth or a soundfont and where ``out`` holds a manifest, UsageError for a
    soundfont of unknown license.
    """
    synthesizer = Synthesizer(find_soundfont(soundfont, license_name))
    build_sounds(out, "procedural-music", count, seed, lambda index: made_piece(seed, index, synthesizer))


def made_piece(seed: int, index: int, synthesizer: Synthesizer) -> MadeSound:
    """Compose and play one piece."""
    cues, font = sample_cues(seed, index), synthesizer.soundfont
    score = compose(cues, seed, index)
    valence, arousal = labels_of(cues)
    written = {
        "mode": cues.mode_name,
        "tempo_bpm": round(cues.tempo_bpm, 2),
        "tonic": score.tonic,
        "programs": list(score.programs.values()),
        "soundfont": font.file.name,
        "soundfont_sha256": font.sha256,
    }
    return MadeSound(
        synthesizer.play(score),
        RATE_HZ,
        valence,
        arousal,
        f"{_speed(cues)} music in {cues.mode_name}",
        f"CC0-1.0 AND {font.license}",
        {"cues": {name: round(value, 6) for name, value in asdict(cues).items()}, **written},
        {".mid": midi_bytes(score)},
    )


def _speed(cues: Cues) -> str:
    return "slow" if cues.tempo_bpm < 76 else "fast" if cues.tempo_bpm > 120 else "moderate"
