"""Harmony of a piece: scales, chord progressions, and voices that move by the rules of part-writing.

In: a mode, a tonic and random numbers. Out: one `Chord` a bar with its degree, pitch classes and the pitches
of its upper voices and bass. Pitches are MIDI numbers (69 is 440 Hz).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SCALES: dict[str, tuple[int, ...]] = {  # semitones above the tonic
    "major": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
}
# Degrees (0 is the tonic) that follow a degree, with their shares. Each mode cadences through the chord that
# tells it apart: V in major and minor, bVII in Mixolydian, II in Lydian and Phrygian, IV in Dorian.
_NEXT: dict[str, dict[int, tuple[int, ...]]] = {
    "major": {0: (3, 4, 5, 1), 1: (4, 3), 3: (4, 0, 1), 4: (0, 3, 5), 5: (3, 3, 1)},
    "mixolydian": {0: (6, 3, 4), 6: (3, 0, 3), 3: (0, 6, 0), 4: (3, 6, 0)},
    "lydian": {0: (1, 1, 4, 5), 1: (0, 4, 0), 4: (0, 1), 5: (1, 4)},
    "dorian": {0: (3, 3, 6, 2), 3: (0, 6, 0), 6: (0, 3), 2: (3, 6)},
    "minor": {0: (3, 4, 5, 6), 3: (4, 0, 5), 4: (0, 3, 5), 5: (3, 3, 2), 6: (2, 5), 2: (5, 3)},
    "phrygian": {0: (1, 1, 6, 3), 1: (0, 0, 6), 6: (1, 0), 3: (1, 0)},
}
CADENCE = {"major": 4, "mixolydian": 6, "lydian": 1, "dorian": 3, "minor": 4, "phrygian": 1}
_PARALLEL = (0, 7)  # intervals in which two voices must not move together
_FORBIDDEN = 40  # cost of a broken rule, in semitones of movement


@dataclass(frozen=True)
class Chord:
    """One bar's chord. ``scale``: the bar's seven pitch classes. ``tones``: pitch classes, the root first."""

    degree: int
    scale: tuple[int, ...]
    tones: tuple[int, ...]
    upper: tuple[int, ...] = ()  # pitches of the upper voices, ascending
    bass: int = 0


def progression(mode: str, tonic: int, bars: int, dissonance: float, rng: np.random.Generator) -> list[Chord]:
    """Draw a chord for each bar: two phrases that begin on the tonic, and a cadence to the tonic.

    ``dissonance`` (0 to 1): the share of bars that get each of a seventh, a second above the root and a
    clash of a semitone.
    """
    cadence = CADENCE[mode]
    half = bars // 2 if bars >= 8 else 0  # the second phrase's first bar
    fixed = {half - 1: cadence, bars - 2: cadence, 0: 0, half: 0, bars - 1: 0}
    degrees: list[int] = []
    for bar in range(bars):
        if bar in fixed:
            degrees.append(fixed[bar])
            continue
        following = _NEXT[mode][degrees[-1]]
        prepares = [degree for degree in following if degree not in (0, cadence)]
        is_before_cadence = fixed.get(bar + 1) == cadence
        degrees.append(int(rng.choice(prepares if is_before_cadence and prepares else following)))
    return [
        _chord(mode, tonic, degree, dissonance * (0.6 if number == bars - 1 else 1.0), rng)
        for number, degree in enumerate(degrees)
    ]


def _chord(mode: str, tonic: int, degree: int, dissonance: float, rng: np.random.Generator) -> Chord:
    steps = list(SCALES[mode])
    if mode == "minor" and degree == 4:
        steps[6] = 11  # the leading tone of the harmonic minor
    scale = tuple((tonic + step) % 12 for step in steps)
    tones = [scale[(degree + third) % 7] for third in (0, 2, 4)]
    has = rng.random(3) < np.clip(
        [1.6 * dissonance - 0.2, 1.4 * dissonance - 0.4, 1.6 * dissonance - 0.8], 0, 1
    )
    if has[0]:
        tones.append(scale[(degree + 6) % 7])
    if has[1]:
        tones.append(scale[(degree + 1) % 7])
    if has[2]:
        tones.append((tones[int(rng.integers(3))] + 1) % 12)
    return Chord(degree, scale, tuple(dict.fromkeys(tones)))


def voiced(chords: Sequence[Chord], center: int, bass_center: int) -> list[Chord]:
    """Give each chord its pitches: upper voices around ``center``, a bass around ``bass_center``.

    The centers are at least 16 semitones apart, so that the bass stays below.
    Voices move as little as they can. No voice crosses another, no two move in parallel fifths or octaves,
    and adjacent upper voices stay within an octave where the chord allows it.
    """
    out: list[Chord] = []
    for chord in chords:
        before = out[-1] if out else None
        bass = _near(chord.tones[0], before.bass if before else bass_center, bass_center)
        upper = min(_voicings(chord.tones, center), key=lambda v: (_cost(v, bass, before, center), v))
        out.append(replace(chord, upper=upper, bass=bass))
    return out


def _near(pitch_class: int, wanted: int, center: int) -> int:
    """Return the pitch of a class next to ``wanted``, within half an octave of ``center``."""
    pitches = [p for p in range(center - 6, center + 7) if p % 12 == pitch_class]
    return min(pitches, key=lambda p: (abs(p - wanted), abs(p - center)))


def _voicings(tones: Sequence[int], center: int) -> list[tuple[int, ...]]:
    each = [[p for p in range(center - 9, center + 10) if p % 12 == tone] for tone in tones]
    return [tuple(sorted(pitches)) for pitches in itertools.product(*each)]


def _cost(upper: Sequence[int], bass: int, before: Chord | None, center: int) -> float:
    cost = 0.3 * abs(float(np.mean(upper)) - center)
    cost += sum(_FORBIDDEN / 4 for low, high in itertools.pairwise(upper) if high - low > 12)
    if before is None:
        return cost
    count = min(len(upper), len(before.upper))
    old, new = (before.bass, *before.upper[-count:]), (bass, *upper[-count:])
    cost += sum(abs(a - b) for a, b in zip(old[1:], new[1:], strict=True))
    return cost + _FORBIDDEN * parallels(old, new)


def parallels(old: Sequence[int], new: Sequence[int]) -> int:
    """Count the pairs of voices that move together from one fifth or octave to the next."""
    moved = [(a, b) for a, b in zip(old, new, strict=True)]
    return sum(
        (high[0] - low[0]) % 12 == (high[1] - low[1]) % 12
        and (high[0] - low[0]) % 12 in _PARALLEL
        and low[1] != low[0]
        and (low[1] - low[0]) * (high[1] - high[0]) > 0
        for low, high in itertools.combinations(moved, 2)
    )
