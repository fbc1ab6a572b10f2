"""Sound sources of a soundscape: natural, mechanical and human, all synthesized.

In: random numbers and a length. Out: (n,) float32 mono at 16 kHz with an RMS of 1. A source that comes in
events (birds, steps, drills) takes the mean number of events a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.art.synthesis import band_gain, fade, phase_cycles, sample_times_s

Float32 = npt.NDArray[np.float32]
Synthesis = Callable[[np.random.Generator, int, float], npt.NDArray[np.floating]]

NATURAL, MECHANICAL, HUMAN = KINDS = ("natural", "mechanical", "human")


@dataclass(frozen=True)
class Source:
    """One kind of sound source. ``synthesize`` takes random numbers, samples and events a second."""

    name: str
    kind: str  # one of KINDS
    pleasantness: float  # of the source alone, in [-1, 1]
    eventfulness: float
    synthesize: Synthesis


def synthesized(source: Source, rng: np.random.Generator, samples: int, events_hz: float) -> Float32:
    """Synthesize a source, (samples,) float32 with an RMS of 1."""
    return normalized(source.synthesize(rng, samples, events_hz))


def normalized(sound: npt.NDArray[np.floating]) -> Float32:
    """Scale a sound to an RMS of 1; silence stays silent."""
    rms = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    return (sound / max(rms, 1e-9)).astype(np.float32)


def slow_noise(rng: np.random.Generator, samples: int, highest_hz: float) -> npt.NDArray[np.float64]:
    """Draw a smooth random course (n,) with frequencies up to ``highest_hz``, mean 0, deviation 1."""
    spectrum = np.zeros(samples // 2 + 1, complex)
    most = max(2, int(highest_hz * samples / SAMPLE_RATE_HZ) + 1)
    spectrum[1:most] = rng.standard_normal(most - 1) + 1j * rng.standard_normal(most - 1)
    course = np.fft.irfft(spectrum, samples)
    return course / max(float(course.std()), 1e-12)


def noise(
    rng: np.random.Generator, samples: int, low_hz: float, high_hz: float, slope: float = 2.0
) -> npt.NDArray[np.float64]:
    """Draw noise (n,) in a band, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    return normalized(np.fft.irfft(spectrum * band_gain(hertz, low_hz, high_hz, slope), samples)).astype(
        float
    )


def _placed(
    rng: np.random.Generator, samples: int, events_hz: float, event: Callable[[], npt.NDArray[np.floating]]
) -> npt.NDArray[np.float64]:
    """Add events at random times with random levels; at least one."""
    out = np.zeros(samples)
    for _ in range(max(1, int(rng.poisson(events_hz * samples / SAMPLE_RATE_HZ)))):
        sound = event()[:samples]
        start = int(rng.integers(0, max(1, samples - len(sound))))
        out[start : start + len(sound)] += sound * 10 ** (rng.uniform(-9, 0) / 20)
    return out


# --- natural ------------------------------------------------------------------------------------------------


def _birds(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Sing whistled phrases of two to four species between 2 and 6 kHz, chirps that glide and repeat."""
    species = [
        (rng.uniform(2200, 5200), rng.uniform(-0.35, 0.35), rng.uniform(0.05, 0.18), int(rng.integers(2, 8)))
        for _ in range(int(rng.integers(2, 5)))
    ]

    def phrase() -> npt.NDArray[np.floating]:
        pitch_hz, glide, length_s, repeats = species[int(rng.integers(len(species)))]
        t = sample_times_s(length_s)
        x = t / t[-1]
        hertz = pitch_hz * 2 ** (glide * np.sin(np.pi * x * rng.uniform(0.8, 2.2)))
        chirp = np.sin(2 * np.pi * phase_cycles(hertz)) * fade(t, 0.3 * length_s, 0.5 * length_s)
        gap = np.zeros(int(rng.uniform(0.3, 1.2) * len(t)))
        return np.tile(np.concatenate([chirp, gap]), repeats)

    return _placed(rng, samples, 0.6 + events_hz, phrase)


def _stream(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Let bubbles rise, damped rising sines from 400 Hz to 3 kHz, over a soft rush."""

    def bubble() -> npt.NDArray[np.floating]:
        t = sample_times_s(rng.uniform(0.02, 0.07))
        hertz = rng.uniform(400, 3000) * (1 + 2.5 * t)
        return np.sin(2 * np.pi * phase_cycles(hertz)) * np.exp(-t * rng.uniform(50, 120))

    return 3 * _placed(rng, samples, 45.0, bubble) + 0.12 * noise(rng, samples, 300, 3500, 1.0)


def _waves(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Surf: noise that swells every five to nine seconds, its hiss later than its roar."""
    t = np.arange(samples) / SAMPLE_RATE_HZ
    phase = t / rng.uniform(5, 9) + rng.random()
    swell, hiss = (np.exp(2.2 * (np.cos(2 * np.pi * (phase - late)) - 1)) for late in (0.0, 0.1))
    return (0.1 + swell) * noise(rng, samples, 80, 700, 1.2) + (0.05 + 0.8 * hiss) * noise(
        rng, samples, 800, 5000, 1.0
    )


def _wind(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Gusts of low noise, and leaves that rustle with them."""
    gust = np.exp(0.5 * slow_noise(rng, samples, 0.5))
    return gust * noise(rng, samples, 60, 350, 1.0) + 0.25 * gust * noise(rng, samples, 1200, 5500, 1.0)


def _rain(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Let drops fall, short bursts of high noise, over a steady hiss."""
    drops = np.zeros(samples)
    places = rng.integers(0, samples, int(rng.uniform(1500, 5000) * samples / SAMPLE_RATE_HZ))
    drops[places] = rng.standard_normal(len(places))
    spectrum = np.fft.rfft(drops) * band_gain(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ), 1200, 6500, 1.0)
    return normalized(np.fft.irfft(spectrum, samples)) + 0.8 * noise(rng, samples, 900, 7000, 0.8)


# --- mechanical ---------------------------------------------------------------------------------------------


def _pulses(hertz: npt.NDArray[np.floating], partials: int, slope: float) -> npt.NDArray[np.float64]:
    """Sum harmonics of a changing pitch (n,) with amplitudes k ** -slope, below 7 kHz."""
    turned = np.exp(2j * np.pi * phase_cycles(hertz))
    partial, out = np.ones_like(turned), np.zeros(len(hertz))
    for k in range(1, min(partials, int(7000 / hertz.max())) + 1):
        partial = partial * turned
        out += k**-slope * np.imag(np.exp(2.1j * k * k) * partial)
    return out


def _traffic(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Pass cars before a far rumble: tire noise with an engine's tone that falls as they go by."""

    def car() -> npt.NDArray[np.floating]:
        length_s = rng.uniform(2.5, 5.0)
        t = sample_times_s(length_s)
        near = 1 / (1 + ((t / length_s - 0.5) * rng.uniform(6, 10)) ** 2)
        tone = _pulses(rng.uniform(60, 110) * (1.06 - 0.12 / (1 + np.exp(-8 * (t - length_s / 2)))), 12, 1.2)
        return near * (noise(rng, len(t), 200, 1200, 1.2) + 0.5 * normalized(tone))

    return 0.35 * noise(rng, samples, 40, 300, 1.0) + _placed(rng, samples, 0.2 + 0.5 * events_hz, car)


def _engine(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Idle a diesel: firing pulses at 25 to 45 Hz, uneven, with a rattle on each."""
    hertz = rng.uniform(25, 45) * (1 + 0.03 * slow_noise(rng, samples, 1.0))
    firing = np.exp(-6 * (phase_cycles(hertz) % 1.0))
    return normalized(_pulses(hertz, 40, 0.7)) + 0.6 * firing * noise(rng, samples, 700, 4000, 1.0)


def _fan(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Steady noise of air with the hum of a motor at 100 Hz and of the blades."""
    t = np.arange(samples) / SAMPLE_RATE_HZ
    blades_hz = rng.uniform(120, 260)
    hum = sum(
        g * np.sin(2 * np.pi * f * t) for f, g in ((100.0, 0.5), (blades_hz, 0.6), (2 * blades_hz, 0.3))
    )
    return noise(rng, samples, 150, 2500, 0.7) + hum


def _drill(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Bursts of a hammer drill: blows at 22 to 40 Hz, hard and bright, with the whine of its motor."""

    def burst() -> npt.NDArray[np.floating]:
        t = sample_times_s(rng.uniform(0.8, 2.5))
        blows = np.exp(-7 * ((t * rng.uniform(22, 40)) % 1.0))
        whine = _pulses(np.full(len(t), rng.uniform(320, 480)), 14, 0.6)
        return (blows * noise(rng, len(t), 900, 6500, 1.0) + 0.35 * normalized(whine)) * fade(t, 0.05, 0.1)

    return _placed(rng, samples, 0.25 + 0.5 * events_hz, burst) + 0.01 * noise(rng, samples, 50, 400)


# --- human --------------------------------------------------------------------------------------------------

_SYLLABLES = 12  # that a speaker has
_VOWELS_HZ = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))


def _syllable(
    rng: np.random.Generator, pitch_hz: float, length_s: float, excited: float
) -> npt.NDArray[np.floating]:
    """Say a vowel after a consonant: a glottal tone through three formants (Peterson & Barney 1952)."""
    t = sample_times_s(length_s)
    x = t / t[-1]
    tone = pitch_hz * 2 ** ((0.15 + 0.25 * excited) * np.sin(np.pi * x) - 0.1 * x)
    numbers = np.arange(1, int(min(45, 6500 / pitch_hz)) + 1)
    gain = 0.03 + sum(
        g * np.exp(-0.5 * ((numbers * pitch_hz - f) / (90 + 0.06 * f)) ** 2)
        for f, g in zip(_VOWELS_HZ[int(rng.integers(len(_VOWELS_HZ)))], (1.0, 0.6, 0.3), strict=True)
    )
    cycles = phase_cycles(tone)
    voiced = (gain / numbers**0.4) @ np.sin(
        2 * np.pi * numbers[:, None] * cycles + 2.1 * numbers[:, None] ** 2
    )
    breath = 0.3 * np.exp(-x * 12) * noise(rng, len(t), 2000, 6500, 1.0)
    return (voiced + breath) * fade(t, 0.12 * length_s, 0.4 * length_s)


def _talk(
    rng: np.random.Generator, samples: int, speakers: int, rate_hz: float, excited: float
) -> npt.NDArray[np.float64]:
    """Let people talk: syllables in phrases with pauses, each at a pitch and level of their own."""
    out = np.zeros(samples)
    for _ in range(speakers):
        pitch_hz = float(rng.choice([rng.uniform(95, 150), rng.uniform(180, 260)])) * (1 + 0.4 * excited)
        level = 10 ** (rng.uniform(-12, 0) / 20)
        said = [
            level
            * _syllable(rng, pitch_hz * rng.uniform(0.88, 1.2), rng.uniform(0.6, 1.1) / rate_hz, excited)
            for _ in range(_SYLLABLES)
        ]
        now = int(rng.uniform(0, 1.5) * SAMPLE_RATE_HZ)
        while now < samples:
            for number in rng.integers(_SYLLABLES, size=rng.integers(3, 12)):
                spoken = said[number][: max(0, samples - now)]
                out[now : now + len(spoken)] += spoken
                now += int(len(spoken) * rng.uniform(0.9, 1.2)) + 1
            now += int(rng.uniform(0.2, 1.2) * SAMPLE_RATE_HZ)
    return out


def _babble(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Two to four people who talk."""
    return _talk(rng, samples, int(rng.integers(2, 5)), 4.5, 0.2)


def _crowd(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Eight people who talk at once and call, over the murmur of many more."""
    murmur = noise(rng, samples, 250, 1800, 1.2) * np.exp(0.3 * slow_noise(rng, samples, 3.0))
    return normalized(_talk(rng, samples, 8, 5.5, 0.9)) + 0.5 * murmur


def _steps(rng: np.random.Generator, samples: int, events_hz: float) -> npt.NDArray[np.floating]:
    """Someone who walks, 1.6 to 2.2 steps a second: heel, then sole."""
    out = np.zeros(samples)
    period = SAMPLE_RATE_HZ / rng.uniform(1.6, 2.2)
    t = sample_times_s(0.14)
    for at in np.arange(rng.uniform(0, period), samples - len(t), period):
        heel = noise(rng, len(t), 120, 900, 1.0) * np.exp(-t / 0.018)
        sole = 0.5 * noise(rng, len(t), 800, 4500, 1.0) * np.exp(-np.maximum(t - 0.05, 0) / 0.02) * (t > 0.05)
        start = int(at + rng.uniform(-0.02, 0.02) * period) % (samples - len(t))
        out[start : start + len(t)] += (heel + sole) * rng.uniform(0.7, 1.0)
    return out


# Pleasantness and eventfulness of sources alone. Kinds as Axelsson, Nilsson & Berglund (2010) found them.
# Inside a kind: soft and variable water is liked more than loud and steady water (Rådsten Ekman, Lundén &
# Nilsson 2015, doi:10.1121/1.4934956); vehicles and construction are liked least, sounds of people are
# neutral (Yang & Kang 2003, "Sound preferences in urban open public spaces"). The rest of the order is ours.
SOURCES: tuple[Source, ...] = (
    Source("birds", NATURAL, 1.0, 0.15, _birds),
    Source("stream", NATURAL, 0.9, -0.15, _stream),
    Source("sea waves", NATURAL, 0.8, -0.2, _waves),
    Source("wind", NATURAL, 0.45, -0.3, _wind),
    Source("rain", NATURAL, 0.5, -0.2, _rain),
    Source("traffic", MECHANICAL, -0.8, -0.1, _traffic),
    Source("engine", MECHANICAL, -0.85, -0.1, _engine),
    Source("fan", MECHANICAL, -0.55, -0.6, _fan),
    Source("drill", MECHANICAL, -1.0, 0.25, _drill),
    Source("footsteps", HUMAN, 0.0, 0.35, _steps),
    Source("babble of voices", HUMAN, 0.0, 0.7, _babble),
    Source("crowd", HUMAN, -0.05, 0.9, _crowd),
)
