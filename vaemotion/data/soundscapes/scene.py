"""Scenes: sources in known proportions, at a known level, with labels of soundscape research.

In: a seed and the number of a scene. Out: a `Scene`, its sound, and its labels without noise: pleasantness
taken as valence, eventfulness as arousal. What is known:

- Axelsson, Nilsson & Berglund (2010), "A principal components model of soundscape perception", JASA 128:2836:
  pleasantness and eventfulness span soundscapes (50 and 18 % of the variance); technological sounds are
  unpleasant, natural ones pleasant, human ones eventful, also at equal loudness. The same listeners
  (Axelsson, Berglund & Nilsson 2005, "Soundscape assessment", JASA 117:2591): technological sounds lower
  eventfulness too.
- ISO/TS 12913-3:2019 projects eight attributes on these two axes, each in [-1, 1].
- Level lowers pleasantness: Aumond et al. (2017), Appl. Sci. 7:144, explain 60 % of its variance by it.

That a level that varies is eventful, and a loud one too, is taken as such. The level counts little here: in a
file it is no sound pressure. The weights keep these signs. They are taken from no single regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.soundscapes.sources import KINDS, SOURCES, Source, noise, slow_noise, synthesized

DURATION_S = 10.0
QUIETEST_DB, LOUDEST_DB = -46.0, -16.0  # RMS level re full scale
_SHORT_S = 0.125  # the time over which a level is measured (IEC 61672: fast)
_WIDEST_DB = 26.0  # L10 - L90 from which variability counts as 1
_MOST_GAIN_DB = 9.0  # deviation of a source's level at liveliness 1
_FLOOR_DB = -28.0  # level of the place itself, a far murmur, below that of the scene
_PEAK = 0.98
# Weights: of the sources' own values, of the level and of its variability.
_PLEASANT = (0.95, -0.15, 0.00)
_EVENTFUL = (0.75, 0.15, 0.45)

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """Content of a scene.

    ``shares``: of each source, by its number in ``SOURCES``, in the amplitude; they sum to 1. ``level``: -1
    (quiet) to 1 (loud), which a sound with high peaks stays below. ``liveliness``: 0 (steady) to 1 (comes and
    goes).
    """

    shares: Mapping[int, float]
    level: float
    liveliness: float

    @property
    def level_db(self) -> float:
        """RMS level in dB re full scale."""
        return QUIETEST_DB + (self.level + 1) / 2 * (LOUDEST_DB - QUIETEST_DB)

    def share_of(self, kind: str) -> float:
        """Return the share of all sources of a kind."""
        return sum(share for number, share in self.shares.items() if SOURCES[number].kind == kind)


def scene_rng(seed: int, index: int, part: int) -> np.random.Generator:
    """Return the random numbers of one part of a scene: 0 what it holds, 1 its sound, 2 its recordings."""
    return np.random.default_rng([seed, index, part, 0x7373])


def sample_scene(seed: int, index: int) -> Scene:
    """Draw a scene of one to four sources; one kind leads in most."""
    rng = scene_rng(seed, index, 0)
    kinds = rng.dirichlet(np.full(len(KINDS), 0.45))
    shares: dict[int, float] = {}
    for kind, part in zip(KINDS, kinds, strict=True):
        if part < 0.08:
            continue
        numbers = [number for number, source in enumerate(SOURCES) if source.kind == kind]
        chosen = rng.choice(numbers, 2 if part > 0.5 and rng.random() < 0.4 else 1, replace=False)
        for number, piece in zip(chosen, rng.dirichlet(np.full(len(chosen), 2.0)), strict=True):
            shares[int(number)] = float(part * piece)
    total = sum(shares.values())
    shares = {number: share / total for number, share in shares.items()}
    return Scene(shares, float(rng.uniform(-1, 1)), float(rng.beta(0.8, 0.8)))


def scene_sound(
    scene: Scene, seed: int, index: int, recorded: Mapping[int, Float32] | None = None
) -> Float32:
    """Mix a scene; (n,) float32 mono at 16 kHz in [-1, 1].

    ``recorded``: sounds of ``DURATION_S`` that stand in for sources, by the sources' number.
    """
    rng = scene_rng(seed, index, 1)
    samples = round(DURATION_S * SAMPLE_RATE_HZ)
    mixed = np.zeros(samples)
    for number, share in scene.shares.items():
        voice = np.random.default_rng(rng.integers(2**63))
        sound = (recorded or {}).get(number)
        if sound is None:
            sound = synthesized(SOURCES[number], voice, samples, 1.5 * scene.liveliness)
        gain_db = _MOST_GAIN_DB * scene.liveliness * slow_noise(voice, samples, 0.6)
        lively = sound * 10 ** (np.clip(gain_db, -30, 16) / 20)
        mixed += share * lively / np.sqrt(np.mean(lively**2))
    floor = noise(rng, samples, 80, 600, 1.0)
    mixed += 10 ** (_FLOOR_DB / 20) * np.sqrt(np.mean(mixed**2)) * floor
    mixed *= 10 ** (scene.level_db / 20) / np.sqrt(np.mean(mixed**2))
    over = np.abs(mixed).max() / _PEAK
    return (mixed / over if over > 1 else mixed).astype(np.float32)


def level_db(sound: Float32) -> float:
    """Return the RMS level of a sound in dB re full scale."""
    return float(10 * np.log10(np.mean(np.square(sound, dtype=np.float64)) + 1e-12))


def variability_db(sound: Float32) -> float:
    """Return L10 - L90 of a sound in dB: between the levels exceeded in 10 and in 90 % of the time."""
    size = round(_SHORT_S * SAMPLE_RATE_HZ)
    parts = sound[: len(sound) // size * size].reshape(-1, size)
    low, high = np.percentile([level_db(part) for part in parts], [10, 90])
    return float(high - low)


def labels_of(scene: Scene, sound: Float32) -> tuple[float, float]:
    """Return the valence and arousal of a scene, each in [-1, 1]; level and variability are the sound's."""
    sources = [(SOURCES[number], share) for number, share in scene.shares.items()]
    level = _centered(level_db(sound) - QUIETEST_DB, LOUDEST_DB - QUIETEST_DB)
    varies = _centered(variability_db(sound), _WIDEST_DB)
    return (
        _rule(_PLEASANT, _mean(sources, "pleasantness"), level, varies),
        _rule(_EVENTFUL, _mean(sources, "eventfulness"), level, varies),
    )


def _centered(value: float, most: float) -> float:
    """Map 0 .. ``most`` to -1 .. 1."""
    return min(max(2 * value / most - 1, -1.0), 1.0)


def _mean(sources: Sequence[tuple[Source, float]], name: str) -> float:
    return sum(share * getattr(source, name) for source, share in sources)


def _rule(weights: tuple[float, float, float], *values: float) -> float:
    return float(np.clip(np.dot(weights, values), -1.0, 1.0))
