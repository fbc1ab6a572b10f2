"""Scores: melody, chords, bass and percussion that carry a piece's cues.

In: a piece's `Cues`, seed and index. Out: a `Score`, whose notes are in ticks, ``TICKS_A_BEAT`` to the beat,
so that a MIDI file and a synthesizer play the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vaemotion.data.music.cues import TIMBRES, Cues, piece_rng
from vaemotion.data.music.harmony import Chord, progression, voiced

TICKS_A_BEAT = 480
MELODY, CHORDS, BASS, PERCUSSION = 0, 1, 2, 9  # MIDI channels; 9 is percussion in General MIDI
_PERCUSSION_FROM = 0.1  # density above which a piece has percussion
_KICK, _SNARE, _HAT = 36, 38, 42
_LONGEST_S = 18.0
# Rhythms of one beat: starts in sixteenths. The mean number of notes a beat chooses between them.
_CELLS: tuple[tuple[int, ...], ...] = ((), (0,), (0, 2), (0, 3), (0, 2, 3), (0, 1, 2, 3))


@dataclass(frozen=True, order=True)
class Note:
    """One note. ``velocity``: 1 to 127."""

    start: int  # ticks
    length: int  # ticks
    channel: int
    pitch: int  # MIDI number
    velocity: int


@dataclass(frozen=True)
class Score:
    """A piece as it is written. ``programs``: General MIDI program of each channel except percussion."""

    tempo_bpm: float
    beats_a_bar: int
    bars: int
    tonic: int  # pitch class
    chords: tuple[Chord, ...]  # one a bar
    programs: dict[int, int]
    notes: tuple[Note, ...]  # by their start

    @property
    def duration_s(self) -> float:
        """Length of the bars; the last notes ring on."""
        return self.bars * self.beats_a_bar * 60.0 / self.tempo_bpm


def compose(cues: Cues, seed: int, index: int) -> Score:
    """Write the score of a piece; the same for the same cues, seed and index."""
    rng = piece_rng(seed, index, 1)
    beats = int(rng.choice([4, 4, 4, 3]))
    bars = next(n for n in (12, 8, 6, 4) if n == 4 or n * beats * 60 / cues.tempo_bpm <= _LONGEST_S)
    tonic = int(rng.integers(12))
    center = round(69 + 12 * cues.register)
    dissonance = (cues.dissonance + 1) / 2
    chords = progression(cues.mode_name, tonic, bars, dissonance, rng)
    chords = voiced(chords, min(max(center - 9, 54), 66), round(41 + 5 * cues.register))
    timbres = TIMBRES[cues.timbre]
    lead = int(rng.choice(timbres))
    backing = int(rng.choice([program for program in timbres if program != lead]))
    programs = {MELODY: lead, CHORDS: backing, BASS: 32 if cues.density > _PERCUSSION_FROM else 42}
    notes = [
        *_melody(chords, cues, center, beats, rng),
        *_accompaniment(chords, cues, beats),
        *_bass(chords, cues, beats),
        *_percussion(bars, cues, beats),
    ]
    performed = _performed(notes, cues, bars * beats, piece_rng(seed, index, 2))
    return Score(cues.tempo_bpm, beats, bars, tonic, tuple(chords), programs, tuple(sorted(performed)))


# --- melody -------------------------------------------------------------------------------------------------


def _melody(
    chords: Sequence[Chord], cues: Cues, center: int, beats: int, rng: np.random.Generator
) -> list[Note]:
    """Write a melody over the chords; its rhythm is a motif of two bars that returns.

    Chord tones stand on beats and steps between them. A leap is answered by a step back. With dissonance more
    beats begin on the tone above, which resolves downwards.
    """
    motif = [_rhythm(cues.density, beats, rng) for _ in range(2)]
    clash = max(0.0, 0.5 * cues.dissonance)
    pitch = _nearest(chords[0].tones, center)
    leap = 0
    notes: list[Note] = []
    for bar, chord in enumerate(chords):
        is_last = bar == len(chords) - 1
        starts = [0] if is_last else motif[bar % 2]
        ends = [*starts[1:], 4 * beats]
        for start, end in zip(starts, ends, strict=True):
            allowed = chord.tones[:3] if start % 4 == 0 else chord.scale
            if is_last:
                pitch = _nearest((chord.tones[0],), pitch)
            else:
                step = _step(pitch, leap, center, rng)
                wanted = pitch + step
                new = _nearest(allowed, wanted if wanted != pitch else pitch + 1)
                leap, pitch = new - pitch, new
            first = (bar * beats * 4 + start) * TICKS_A_BEAT // 4
            length = (end - start) * TICKS_A_BEAT // 4
            accent = 8 if start == 0 else 3 if start % 4 == 0 else 0
            can_clash = start % 4 == 0 and length >= TICKS_A_BEAT // 2 and not is_last
            if can_clash and rng.random() < clash:
                above = min(p for p in range(pitch + 1, pitch + 5) if p % 12 in chord.scale)
                held = min(length // 2, TICKS_A_BEAT)
                notes.append(Note(first, held, MELODY, above, accent + 4))
                first, length = first + held, length - held
            notes.append(Note(first, length, MELODY, pitch, accent))
    return notes


def _rhythm(density: float, beats: int, rng: np.random.Generator) -> list[int]:
    """Draw the starts of one bar's notes, in sixteenths; the first note starts the bar."""
    notes_a_beat = 0.5 * 6.0 ** ((density + 1) / 2)  # 0.5 .. 3
    starts: list[int] = []
    owed = 0.0
    for beat in range(beats):
        owed += notes_a_beat
        sizes = [len(cell) for cell in _CELLS]
        count = min(sizes, key=lambda size: abs(size - owed))
        if beat == 0:
            count = max(1, count)
        cell = _CELLS[int(rng.choice([k for k, size in enumerate(sizes) if size == count]))]
        owed -= count
        starts += [4 * beat + start for start in cell]
    return starts


def _step(pitch: int, leap: int, center: int, rng: np.random.Generator) -> int:
    """Return how far the melody wants to move, in semitones."""
    if abs(leap) > 5:
        return -2 if leap > 0 else 2
    drift = -0.25 * (pitch - center)
    step = rng.choice([1, 2, 2, 3, 5, 7], p=[0.15, 0.3, 0.25, 0.15, 0.1, 0.05])
    return int(step if rng.random() < 1 / (1 + np.exp(-drift)) else -step)


def _nearest(pitch_classes: Sequence[int], pitch: int) -> int:
    return min(
        (p for p in range(pitch - 6, pitch + 7) if p % 12 in pitch_classes), key=lambda p: (abs(p - pitch), p)
    )


# --- accompaniment ------------------------------------------------------------------------------------------


def _accompaniment(chords: Sequence[Chord], cues: Cues, beats: int) -> list[Note]:
    """Write held chords, chords on beats, or broken chords in eighths, the denser the piece is."""
    notes: list[Note] = []
    for bar, chord in enumerate(chords):
        first, whole = bar * beats * TICKS_A_BEAT, beats * TICKS_A_BEAT
        if cues.density < -0.3 or bar == len(chords) - 1:
            notes += [Note(first, whole, CHORDS, pitch, -12) for pitch in chord.upper]
        elif cues.density < 0.35:
            notes += [
                Note(first + beat * TICKS_A_BEAT, TICKS_A_BEAT, CHORDS, pitch, -14)
                for beat in range(beats)
                for pitch in chord.upper
            ]
        else:
            half = TICKS_A_BEAT // 2
            order = (*chord.upper, *chord.upper[-2:0:-1])
            notes += [
                Note(first + k * half, half, CHORDS, order[k % len(order)], -8) for k in range(2 * beats)
            ]
    return notes


def _bass(chords: Sequence[Chord], cues: Cues, beats: int) -> list[Note]:
    """Write one bass note a bar, root and fifth, or roots in eighths, the denser the piece is."""
    notes: list[Note] = []
    for bar, chord in enumerate(chords):
        first, whole = bar * beats * TICKS_A_BEAT, beats * TICKS_A_BEAT
        fifth = chord.bass + 7 if (chord.bass + 7) % 12 in chord.tones else chord.bass
        if cues.density < -0.2 or bar == len(chords) - 1:
            notes.append(Note(first, whole, BASS, chord.bass, -4))
        elif cues.density < 0.5:
            turn = (beats + 1) // 2 * TICKS_A_BEAT
            notes += [
                Note(first, turn, BASS, chord.bass, 0),
                Note(first + turn, whole - turn, BASS, fifth, -4),
            ]
        else:
            half = TICKS_A_BEAT // 2
            notes += [
                Note(first + k * half, half, BASS, fifth if k == 2 * beats - 1 else chord.bass, -4 * (k % 2))
                for k in range(2 * beats)
            ]
    return notes


def _percussion(bars: int, cues: Cues, beats: int) -> list[Note]:
    if cues.density <= _PERCUSSION_FROM:
        return []
    half, short = TICKS_A_BEAT // 2, TICKS_A_BEAT // 8
    hats = 2 if cues.density > 0.45 else 1
    notes: list[Note] = []
    for beat in range((bars - 1) * beats):
        place = beat % beats
        start = beat * TICKS_A_BEAT
        is_kick = place == 0 or (beats == 4 and place == 2)
        notes.append(Note(start, short, PERCUSSION, _KICK if is_kick else _SNARE, 4 if place == 0 else -6))
        notes += [Note(start + k * half, short, PERCUSSION, _HAT, -16 - 6 * k) for k in range(hats)]
    return notes


# --- performance --------------------------------------------------------------------------------------------


def _performed(notes: Sequence[Note], cues: Cues, beats: int, rng: np.random.Generator) -> list[Note]:
    """Play the notes: dynamics with the arch of a phrase, articulation, and a hand's small unevenness.

    Until here the velocity of a note is its accent, relative to the piece's.
    """
    share = 0.58 - 0.38 * cues.articulation  # of a note's length that sounds
    out: list[Note] = []
    for note in notes:
        arch = 5.0 * np.sin(np.pi * note.start / (beats * TICKS_A_BEAT))
        velocity = round(68 + 44 * cues.dynamics + note.velocity + arch + rng.uniform(-3, 3))
        late = round(rng.uniform(0, 0.012) * cues.tempo_bpm / 60 * TICKS_A_BEAT)
        length = note.length if note.channel == PERCUSSION else round(note.length * share)
        pitch = min(max(note.pitch, 21), 108)
        out.append(Note(note.start + late, max(30, length), note.channel, pitch, min(max(velocity, 12), 124)))
    return out
