"""Cues of a piece of procedural music, and the valence and arousal that they express by a published rule.

In: a seed and the number of a piece. Out: its `Cues`, each in [-1, 1], and two labels without noise. The rule
is a weighted sum: Eerola, Friberg & Bresin (2013), "Emotional expression in music: contribution, linearity,
and additivity of primary musical cues", Front. Psychol. 4:487, found that cues add up, mostly linearly and
without interactions (77–89 % of the variance), in the order mode, tempo, register, dynamics, articulation,
timbre. Signs, and the cues that they did not vary, follow:

- Gabrielsson & Lindström (2010), "The role of structure in the musical expression of emotions", Handbook of
  Music and Emotion: fast, loud, dense and staccato music is active; tempo alone gives no valence;
  consonance is pleasant, dissonance is tense and unpleasant;
- Ilie & Thompson (2006), Music Perception 23:319: loud and fast music has more energy and tension;
- Temperley & Tan (2013), Music Perception 30:237: modes are the happier the higher their scale degrees are,
  except Lydian, which is less happy than Ionian; about half of the listeners put Mixolydian before Lydian.

The weights keep these signs and this order. They are taken from no single regression.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np

# Happiness of the modes in Temperley & Tan's order; minor is Aeolian with a raised seventh in dominants.
MODES: dict[str, float] = {
    "major": 1.0,
    "mixolydian": 0.6,
    "lydian": 0.5,
    "dorian": -0.2,
    "minor": -0.7,
    "phrygian": -1.0,
}
# Instruments of the melody (General MIDI programs from 0) by the brightness of their tone.
TIMBRES: dict[float, tuple[int, ...]] = {
    -1.0: (73, 79, 11, 52, 46),  # flute, ocarina, vibraphone, choir, harp
    0.0: (0, 24, 48, 71, 40),  # piano, nylon guitar, strings, clarinet, violin
    1.0: (56, 61, 6, 81, 65),  # trumpet, brass section, harpsichord, saw lead, alto saxophone
}
SLOWEST_BPM, FASTEST_BPM = 48.0, 184.0


@dataclass(frozen=True)
class Cues:
    """The cues of a piece, each in [-1, 1]."""

    mode: float  # happiness of the mode, one of the values of ``MODES``
    tempo: float  # 48 .. 184 beats a minute, in the logarithm
    register: float  # melody around A3 .. A5
    dynamics: float  # pianissimo .. fortissimo
    articulation: float  # legato .. staccato
    timbre: float  # dull .. bright instruments, one of the keys of ``TIMBRES``
    density: float  # one note in two beats .. three notes a beat, with more accompaniment and percussion
    dissonance: float  # pure triads .. seconds, sevenths and suspensions

    @property
    def tempo_bpm(self) -> float:
        """Beats a minute."""
        return SLOWEST_BPM * (FASTEST_BPM / SLOWEST_BPM) ** ((self.tempo + 1) / 2)

    @property
    def mode_name(self) -> str:
        """Name of the mode, a key of ``MODES``."""
        return min(MODES, key=lambda name: abs(MODES[name] - self.mode))


CUE_NAMES = tuple(field.name for field in fields(Cues))

# Loading of each cue on a latent valence and arousal, and its own spread: so that labels fill the square.
_DRAWN = np.array(
    [
        (0.85, 0.00, 0.45),  # mode
        (0.15, 0.70, 0.40),  # tempo
        (0.30, 0.05, 0.50),  # register
        (0.00, 0.65, 0.40),  # dynamics
        (0.20, 0.30, 0.50),  # articulation
        (-0.05, 0.35, 0.55),  # timbre
        (0.05, 0.55, 0.45),  # density
        (-0.65, 0.25, 0.40),  # dissonance
    ]
)
# Weight of each cue in valence and in arousal.
WEIGHTS = np.array(
    [
        (0.46, 0.00),  # mode
        (0.14, 0.36),  # tempo
        (0.12, 0.06),  # register
        (0.00, 0.28),  # dynamics
        (0.08, 0.10),  # articulation
        (-0.05, 0.10),  # timbre
        (0.00, 0.22),  # density
        (-0.30, 0.12),  # dissonance
    ]
)
_SCALE = np.array([0.75, 0.80])  # divisors: labels reach 1, few are clipped


def piece_rng(seed: int, index: int, part: int) -> np.random.Generator:
    """Return the random numbers of one part of a piece: 0 its cues, 1 its score, 2 its performance."""
    return np.random.default_rng([seed, index, part, 0x6D75])


def sample_cues(seed: int, index: int) -> Cues:
    """Draw the cues of a piece; the same for the same seed and index."""
    rng = piece_rng(seed, index, 0)
    latent = rng.uniform(-0.95, 0.95, 2)
    values = np.clip(_DRAWN[:, :2] @ latent + _DRAWN[:, 2] * rng.standard_normal(len(_DRAWN)), -1, 1)
    drawn = dict(zip(CUE_NAMES, values.tolist(), strict=True))
    drawn["mode"] = _level(drawn["mode"], list(MODES.values()))
    drawn["timbre"] = _level(drawn["timbre"], list(TIMBRES))
    return Cues(**drawn)


def _level(value: float, levels: list[float]) -> float:
    """Return one of the levels for a value in [-1, 1], each for an equal part of the range."""
    return sorted(levels)[min(int((value + 1) / 2 * len(levels)), len(levels) - 1)]


def labels_of(cues: Cues) -> tuple[float, float]:
    """Return the valence and arousal that a piece expresses, each in [-1, 1]."""
    valence, arousal = np.clip(np.array(astuple(cues)) @ WEIGHTS / _SCALE, -1.0, 1.0).tolist()
    return valence, arousal
