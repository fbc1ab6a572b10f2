"""Works of procedural art: content, affective factors, labels and event times.

In: a seed. Out: a `Work`, and the times of the events that its frames and its sound share.

The label of a work follows from all its factors, by published relations:

- tempo, loudness, mode, register and roughness: Juslin & Laukka (2003), Gabrielsson & Lindström (2010),
  Eerola, Friberg & Bresin (2013), who also relate brightness of tone to pleasantness;
- brightness and saturation of color: Valdez & Mehrabian (1994: pleasure = .69 B + .22 S,
  arousal = -.31 B + .60 S); warm hues raise arousal: Wilms & Oberfeld (2018);
- angularity: Aronoff (2006), Bar & Neta (2006): sharp contours are disliked and alarming;
- motion: Heider & Simmel (1944), Detenber, Simons & Bennett (1998): moving images arouse more than stills.

The weights keep the signs and the order of these relations; they are taken from no single regression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from vaemotion.contract.emotions import emotion_distribution
from vaemotion.data.art.contents import CONTENT_CLASSES
from vaemotion.data.manifest.item import SPLITS


@dataclass(frozen=True)
class Factors:
    """The affective factors of a work, each in [-1, 1]."""

    warmth: float  # palette, cool .. warm
    brightness: float  # palette, dark .. light
    saturation: float  # palette, gray .. vivid
    angularity: float  # contours, round .. spiky
    mode: float  # minor .. major third
    register: float  # low .. high pitch
    roughness: float  # smooth .. rough tone
    tempo: float  # slow .. fast events, visible and audible
    energy: float  # quiet and sparse .. loud and dense; small .. large motion


FACTOR_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Factors))
SHARED: tuple[str, ...] = ("tempo", "energy")
VISIBLE: tuple[str, ...] = ("warmth", "brightness", "saturation", "angularity", *SHARED)
AUDIBLE: tuple[str, ...] = ("mode", "register", "roughness", *SHARED)


@dataclass(frozen=True)
class Work:
    """One work with its labels, which are the same for every path.

    `valence`, `arousal`: in [-1, 1]. `emotion_distribution`: over `vaemotion.contract.emotions.EMOTIONS`,
    sums to 1.
    """

    seed: int
    content: str
    factors: Factors
    valence: float
    arousal: float
    emotion_distribution: tuple[float, ...]


# Factor: loading on latent valence, loading on latent arousal, own noise; weight in valence, weight in
# arousal.
_RELATIONS: dict[str, tuple[float, float, float, float, float]] = {
    "warmth": (0.35, 0.35, 0.50, 0.08, 0.12),
    "brightness": (0.70, -0.20, 0.40, 0.30, -0.12),
    "saturation": (0.40, 0.50, 0.45, 0.14, 0.26),
    "angularity": (-0.65, 0.35, 0.40, -0.28, 0.24),
    "mode": (0.80, 0.00, 0.40, 0.34, 0.00),
    "register": (0.30, 0.35, 0.50, 0.08, 0.20),
    "roughness": (-0.60, 0.40, 0.40, -0.28, 0.30),
    "tempo": (0.15, 0.70, 0.42, 0.10, 0.34),
    "energy": (-0.05, 0.75, 0.42, 0.00, 0.34),
}
_LOADINGS = np.array([_RELATIONS[name] for name in FACTOR_NAMES])  # (9, 5)
_LATENT_LIMIT = 0.95
# Divisors of the weighted sums, chosen so that the labels fill [-1, 1] and few are clipped.
_VALENCE_SCALE = 1.02
_AROUSAL_SCALE = 1.12

# Events per second at tempo -1 and +1, interpolated in log rate. Long sounds have lower maximum rates.
_EVENT_RATE_HZ: dict[str, tuple[float, float]] = {
    "baby cry": (0.8, 2.2),
    "rooster": (0.8, 2.0),
    "sneeze": (0.8, 2.2),
    "sea waves": (0.8, 2.2),
    "helicopter": (1.6, 4.0),
}
_DEFAULT_EVENT_RATE_HZ = (0.8, 4.0)
_JITTER = 0.12  # of a period, peak to peak


def work_seed(split: str, index: int) -> int:
    """Return the seed of the `index`-th work of a split.

    No two works of any splits share a seed. Raises ValueError for an unknown split and an index outside [0,
    2**40).
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    if not 0 <= index < 2**40:
        raise ValueError(f"index: expected 0 <= index < 2**40, got {index}")
    scattered = (index * 0x9E3779B97F + 0x5DEECE66D) % 2**40  # odd multiplier: a bijection of 40 bits
    return ((SPLITS.index(split) + 1) << 40) | scattered


def labels_from_factors(values: np.ndarray) -> np.ndarray:
    """Compute valence and arousal (..., 2) in [-1, 1] from factors (..., 9) in `FACTOR_NAMES` order."""
    raw = values @ _LOADINGS[:, 3:5] / np.array([_VALENCE_SCALE, _AROUSAL_SCALE])
    return np.clip(raw, -1.0, 1.0)


def sample_work(seed: int, content: str | None = None) -> Work:
    """Sample a work.

    `content` fixes its class; None samples it uniformly from `CONTENT_CLASSES`. The factors depend on
    `seed` only. Raises ValueError for an unknown class.
    """
    if content is not None and content not in CONTENT_CLASSES:
        raise ValueError(f"content: expected one of {CONTENT_CLASSES}, got {content!r}")
    rng = np.random.default_rng([seed, 0])
    drawn = CONTENT_CLASSES[int(rng.integers(len(CONTENT_CLASSES)))]
    latent = rng.uniform(-_LATENT_LIMIT, _LATENT_LIMIT, 2)
    noise = rng.standard_normal(len(FACTOR_NAMES))
    values = np.clip(_LOADINGS[:, :2] @ latent + _LOADINGS[:, 2] * noise, -1.0, 1.0)
    valence, arousal = (float(label) for label in labels_from_factors(values))
    return Work(
        seed=seed,
        content=content or drawn,
        factors=Factors(*(float(value) for value in values)),
        valence=valence,
        arousal=arousal,
        emotion_distribution=tuple(float(p) for p in emotion_distribution(valence, arousal)),
    )


def factor_values(work: Work) -> tuple[float, ...]:
    """Return the nine factors in `FACTOR_NAMES` order."""
    return tuple(getattr(work.factors, name) for name in FACTOR_NAMES)


# --- events, shared by frames and sound ---------------------------------------------------------------------


def event_rate_hz(work: Work) -> float:
    """Return the mean rate of the work's events."""
    low, high = _EVENT_RATE_HZ.get(work.content, _DEFAULT_EVENT_RATE_HZ)
    return low * (high / low) ** ((work.factors.tempo + 1) / 2)


def _unit_hash(seed: int, index: np.ndarray) -> np.ndarray:
    """Hash a seed and integer indices (n,) to uniform numbers (n,) in [0, 1) (splitmix64), in any order."""
    salt = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64
    z = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 2.0**53


def event_times(work: Work, start_s: float, end_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (n,) int64 and times (n,) in seconds of all events in [start_s, end_s).

    Events before time 0 have negative indices; event 0 lies within the first 0.6 s. Events are jittered and
    keep their order.
    """
    rate_hz = event_rate_hz(work)
    offset_s = 0.04 + 0.46 * float(_unit_hash(work.seed, np.array([2**40]))[0])
    first = math.floor((start_s - offset_s) * rate_hz) - 1
    last = math.ceil((end_s - offset_s) * rate_hz) + 1
    index = np.arange(first, last + 1)
    times_s = offset_s + (index + _JITTER * (_unit_hash(work.seed, index) - 0.5)) / rate_hz
    inside = (times_s >= start_s) & (times_s < end_s)
    return index[inside], times_s[inside]


def beat_position(work: Work, time_s: np.ndarray | float) -> np.ndarray:
    """Compute positions on the work's beat, in the shape of `time_s`: k at event k, linear between events."""
    times = np.asarray(time_s, dtype=np.float64)
    margin_s = 2.5 / event_rate_hz(work)
    index, events_s = event_times(work, float(times.min()) - margin_s, float(times.max()) + margin_s)
    return np.interp(times, events_s, index.astype(np.float64))
