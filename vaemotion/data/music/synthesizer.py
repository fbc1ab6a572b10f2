"""FluidSynth, which plays a score with a soundfont.

In: a `Score`. Out: float32 mono. FluidSynth's library is a system package and its Python binding an extra;
where one is missing, or no soundfont is found, nothing else is played instead: a `UserError` says what to
install.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.music.midi_file import microseconds_a_beat, note_events
from vaemotion.data.music.score import PERCUSSION, TICKS_A_BEAT, Score

RATE_HZ = 44_100
RING_S = 1.5  # after the last bar
_GAIN = 1.0
_PERCUSSION_BANK = 128
# Free General MIDI soundfonts as Debian installs them; the first that is there is used. Licenses as in the
# packages' copyright files. None of them limits use; GPL-2.0 asks for its terms where renders are passed on.
_FOLDERS = ("/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts")
_FREE = {
    "FluidR3_GM.sf2": "MIT",
    "MuseScore_General.sf3": "MIT",
    "MuseScore_General_Lite.sf3": "MIT",
    "TimGM6mb.sf2": "GPL-2.0-only",
}
_INSTALL = (
    "install FluidSynth and a free soundfont (Debian: apt-get install libfluidsynth3 fluid-soundfont-gm) and "
    "its Python binding (pip install 'vaemotion[music]')"
)

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Soundfont:
    """A soundfont's file and its license as an SPDX identifier."""

    file: Path
    license: str

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.file)


def find_soundfont(file: Path | None = None, license_name: str | None = None) -> Soundfont:
    """Return the given soundfont, or the first free one that is installed.

    Raises UsageError for a soundfont whose license is neither given nor known, UserError where there is none.
    """
    if file is not None:
        if not file.is_file():
            raise UserError(f"the soundfont {file} does not exist; give an .sf2 or .sf3 file")
        known = license_name or _FREE.get(file.name)
        if known is None:
            raise UsageError(
                f"the license of {file.name} is not known; name it by --soundfont-license, such as MIT"
            )
        return Soundfont(file, known)
    for name, known in _FREE.items():
        for folder in _FOLDERS:
            if (found := Path(folder) / name).is_file():
                return Soundfont(found, license_name or known)
    raise UserError(f"no soundfont found in {', '.join(_FOLDERS)}; {_INSTALL}, or give one with --soundfont")


class Synthesizer:
    """FluidSynth with one soundfont. Equal scores give equal samples, whatever was played before."""

    def __init__(self, soundfont: Soundfont) -> None:
        """Load FluidSynth. Raises UserError where it is missing or does not read the soundfont."""
        self._library = _fluidsynth()
        self.soundfont = soundfont
        synth, _ = self._open()
        synth.delete()

    def _open(self) -> tuple[Any, int]:
        # A new one for each score: the phases of reverberation and dither outlast a reset.
        settings = {"synth.dynamic-sample-loading": 1, "synth.chorus.active": 0, "synth.cpu-cores": 1}
        synth = self._library.Synth(_GAIN, RATE_HZ, 16, **settings)
        number = synth.sfload(str(self.soundfont.file))
        if number < 0:
            synth.delete()
            raise UserError(f"FluidSynth cannot read {self.soundfont.file}; give another --soundfont")
        return synth, number

    def play(self, score: Score) -> Float32:
        """Play a score; (n,) float32 mono at ``RATE_HZ``, as long as its bars and ``RING_S``.

        Raises UserError where the soundfont lacks an instrument.
        """
        synth, number = self._open()
        try:
            channels = {note.channel for note in score.notes}
            for channel in channels:
                bank = _PERCUSSION_BANK if channel == PERCUSSION else 0
                program = score.programs.get(channel, 0)
                if synth.program_select(channel, number, bank, program) != 0:
                    raise UserError(
                        f"{self.soundfont.file} has no program {program} in bank {bank}; give a --soundfont "
                        "with all of General MIDI"
                    )
            events = sorted(event for channel in channels for event in note_events(score, channel))
            samples_a_tick = microseconds_a_beat(score) * 1e-6 / TICKS_A_BEAT * RATE_HZ
            total = round((score.duration_s + RING_S) * RATE_HZ)
            parts: list[npt.NDArray[np.int16]] = []
            done = 0
            for ticks, (status, pitch, velocity) in events:
                if (at := min(round(ticks * samples_a_tick), total)) > done:
                    parts.append(synth.get_samples(at - done))
                    done = at
                if status & 0xF0 == 0x90:
                    synth.noteon(status & 0x0F, pitch, velocity)
                else:
                    synth.noteoff(status & 0x0F, pitch)
            parts.append(synth.get_samples(total - done))
        finally:
            synth.delete()
        stereo = np.concatenate(parts).reshape(-1, 2)
        return stereo.mean(axis=1, dtype=np.float32) / np.float32(32768)


def _fluidsynth() -> Any:
    try:
        return importlib.import_module("fluidsynth")
    except ImportError as error:  # the binding, or the library that it looks for
        raise UserError(f"music is rendered by FluidSynth, which is not here ({error}); {_INSTALL}") from None
