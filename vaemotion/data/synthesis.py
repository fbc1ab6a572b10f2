"""Building blocks of the procedural sounds: a work's voice, noises and tones that can be reached at any time.

Nothing here filters along time. Noise and pads are periodic tables that are shaped in the frequency domain once per
work; events are short templates that are added at their times. So a sound can start anywhere, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.works import Work

Float32 = np.ndarray
TABLE_SAMPLES = 2**16  # 4.096 s: longer than the audio window, so that no window sees a repetition
_WAVE_SAMPLES = 2048  # one period of a wavetable
_TABLE_HZ = np.fft.rfftfreq(TABLE_SAMPLES, 1 / SAMPLE_RATE_HZ)
_GRID_HZ = np.geomspace(15.0, SAMPLE_RATE_HZ / 2, 128)
_WHITE_SPECTRA = 16


@dataclass(frozen=True)
class Voice:
    """How a work sounds, whatever it contains: affect and the nuisances of recording."""

    pitch: float  # factor on every frequency, from register
    third: float  # frequency ratio of the third: minor 6/5 .. major 5/4
    mode: float  # -1 .. 1
    rough: float  # 0 .. 1
    energy: float  # 0 .. 1
    equaliser: np.ndarray  # (128,) amplitude gain of the recording on `_GRID_HZ`
    echoes: tuple[tuple[float, float], ...]  # delay in seconds, gain
    rng: np.random.Generator

    def gain(self, hertz: np.ndarray | float) -> np.ndarray:
        """The recording's smooth equalisation: amplitude gain per frequency, same shape as `hertz`."""
        return np.asarray(np.interp(hertz, _GRID_HZ, self.equaliser))


def make_voice(work: Work) -> Voice:
    """The work's voice; audible and shared factors only."""
    rng = np.random.default_rng([work.seed, 3])
    factors = work.factors
    octave = np.log2(_GRID_HZ / 1000.0)
    centre, width, height = (
        rng.uniform(-3.5, 3, (6, 1)),
        rng.uniform(0.2, 0.9, (6, 1)),
        rng.uniform(-9, 9, (6, 1)),
    )
    decibel = rng.uniform(-3, 3) * octave + (height * np.exp(-0.5 * ((octave - centre) / width) ** 2)).sum(
        axis=0
    )
    count = int(rng.integers(0, 4))
    delays, gains = rng.uniform(0.02, 0.16, 3), rng.uniform(0.1, 0.4, 3)
    return Voice(
        pitch=2.0 ** (0.8 * factors.register + rng.uniform(-0.1, 0.1)),
        third=2.0 ** ((3.5 + 0.5 * factors.mode) / 12),
        mode=factors.mode,
        rough=(factors.roughness + 1) / 2,
        energy=(factors.energy + 1) / 2,
        equaliser=10.0 ** (decibel / 20.0),
        echoes=tuple((float(d), float(g)) for d, g in zip(delays[:count], gains[:count], strict=True)),
        rng=rng,
    )


def band(hertz: np.ndarray, low_hz: float, high_hz: float, slope: float = 2.0) -> np.ndarray:
    """Smooth band pass: amplitude gain, 1 inside, falling with `slope` orders outside."""
    safe = np.maximum(hertz, 1.0)
    return 1.0 / np.sqrt((1 + (low_hz / safe) ** (2 * slope)) * (1 + (safe / high_hz) ** (2 * slope)))


def noise_table(voice: Voice, low_hz: float, high_hz: float, slope: float = 2.0, grains: int = 0) -> Float32:
    """Periodic noise (65536,) of RMS one, equalised. `grains` > 0: that many impulses a second instead of a hiss."""
    if grains:
        impulses = np.zeros(TABLE_SAMPLES, np.float32)
        count = max(1, round(grains * TABLE_SAMPLES / SAMPLE_RATE_HZ))
        places = voice.rng.integers(0, TABLE_SAMPLES, count)
        impulses[places] = voice.rng.standard_normal(count).astype(np.float32) ** 3
        spectrum = np.fft.rfft(impulses)
    else:
        spectrum = _white_spectrum(int(voice.rng.integers(_WHITE_SPECTRA)))
    shape = (voice.equaliser * band(_GRID_HZ, low_hz, high_hz, slope)).astype(np.float32)
    table = np.fft.irfft(spectrum * np.interp(_TABLE_HZ, _GRID_HZ, shape).astype(np.float32)).astype(
        np.float32, copy=False
    )
    table = np.roll(table, int(voice.rng.integers(TABLE_SAMPLES)))
    return table / np.float32(_rms(table) + 1e-9)


@lru_cache(maxsize=_WHITE_SPECTRA)
def _white_spectrum(number: int) -> np.ndarray:
    """One of a few realisations of white noise (drawing one per work would take most of the time)."""
    pairs = np.random.default_rng([number, 4]).standard_normal((2, len(_TABLE_HZ)), dtype=np.float32)
    return pairs[0] + 1j * pairs[1]


def _rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.dot(signal, signal) / len(signal)))


def line_table(voice: Voice, hertz: np.ndarray, amplitude: np.ndarray) -> Float32:
    """Periodic sum of sines (65536,), RMS one, at the nearest frequencies of the table (0.24 Hz apart)."""
    inside = hertz < 0.48 * SAMPLE_RATE_HZ
    hertz, amplitude = hertz[inside], amplitude[inside] * voice.gain(hertz[inside])
    spectrum = np.zeros(len(_TABLE_HZ), np.complex64)
    bins = np.rint(hertz * TABLE_SAMPLES / SAMPLE_RATE_HZ).astype(int)
    np.add.at(spectrum, bins, amplitude * np.exp(2j * np.pi * voice.rng.random(len(hertz))))
    table = np.fft.irfft(spectrum).astype(np.float32)
    return table / np.float32(_rms(table) + 1e-12)


def from_table(table: Float32, first: int, count: int) -> Float32:
    """`count` samples of a periodic table from absolute sample `first` on."""
    start = first % len(table)
    if start + count <= len(table):
        return table[start : start + count]
    return np.resize(np.roll(table, -start), count)


def harmonic_wave(
    voice: Voice, f0_hz: float, slope: float = 1.0, formants_hz: tuple[float, ...] = (), odd: float = 1.0
) -> Float32:
    """One period (2048,) of a harmonic tone whose partials fall as h ** -slope, lifted at formants; RMS one.

    `odd` scales the even partials. Equalised as for the fundamental `f0_hz`, without partials above 7.5 kHz.
    """
    count = int(np.clip(7500.0 / f0_hz, 1, 60))
    number = np.arange(1, count + 1)
    amplitude = number ** -float(slope)
    if formants_hz:
        lift = np.full(count, 0.06)
        for centre in formants_hz:
            lift += np.exp(-0.5 * (np.log2(number * f0_hz / centre) / 0.3) ** 2)
        amplitude = amplitude * lift
    amplitude = amplitude * voice.gain(number * f0_hz) * np.where(number % 2, 1.0, odd)
    spectrum = np.zeros(_WAVE_SAMPLES // 2 + 1, np.complex64)
    spectrum[1 : count + 1] = amplitude * np.exp(1j * number**2 * 2.1)
    wave = np.fft.irfft(spectrum).astype(np.float32)
    return wave / np.float32(_rms(wave) + 1e-12)


def play(wave: Float32, cycles: np.ndarray) -> Float32:
    """Read a wavetable at phases in cycles (n,), any real numbers."""
    return wave[((cycles % 1.0) * _WAVE_SAMPLES).astype(np.int32)]


def glide(hertz: np.ndarray) -> np.ndarray:
    """Phases in cycles of a tone with frequencies (n,) per sample, from zero on."""
    return np.cumsum(hertz) / SAMPLE_RATE_HZ


def seconds(duration_s: float) -> np.ndarray:
    """Times (n,) of the samples of a template."""
    return np.arange(max(8, round(duration_s * SAMPLE_RATE_HZ))) / SAMPLE_RATE_HZ


def fade(time_s: np.ndarray, attack_s: float, release_s: float) -> np.ndarray:
    """Envelope (n,): linear attack, linear release to zero at the end."""
    left = time_s[-1] + 1 / SAMPLE_RATE_HZ - time_s
    return np.minimum(1.0, time_s / attack_s) * np.minimum(1.0, left / release_s)


def noise_burst(
    voice: Voice, time_s: np.ndarray, low_hz: float, high_hz: float, slope: float = 2.0
) -> Float32:
    """Equalised noise (n,) of RMS one, as long as `time_s`."""
    n = len(time_s)
    size = 1 << (n - 1).bit_length()
    spectrum = np.fft.rfft(voice.rng.standard_normal(size, dtype=np.float32))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    gain = np.interp(hertz, _GRID_HZ, voice.equaliser * band(_GRID_HZ, low_hz, high_hz, slope)).astype(
        np.float32
    )
    shaped = np.fft.irfft(spectrum * gain)[:n].astype(np.float32)
    return shaped / np.float32(_rms(shaped) + 1e-9)


def with_echoes(voice: Voice, template: Float32) -> Float32:
    """Add the room's few echoes to a template."""
    if not voice.echoes:
        return np.asarray(template, np.float32)
    tail = round(max(delay for delay, _ in voice.echoes) * SAMPLE_RATE_HZ)
    out = np.zeros(len(template) + tail, np.float32)
    out[: len(template)] = template
    for delay_s, gain in voice.echoes:
        shift = round(delay_s * SAMPLE_RATE_HZ)
        out[shift : shift + len(template)] += np.float32(gain) * template
    return out
