"""Building blocks of the procedural sounds: voices, noises, tones, templates, all with random access.

Nothing here filters along time. Noise and pads are periodic tables, shaped in the frequency domain once per
work. Events are short templates, added at their times. A sound can therefore start at any sample, with the
same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.art.works import Work

Float32 = np.ndarray
TABLE_SAMPLES = 2**16  # 4.096 s: longer than the audio window, so that no window holds a repetition
_WAVE_SAMPLES = 2048  # one period of a wavetable
_TABLE_HZ = np.fft.rfftfreq(TABLE_SAMPLES, 1 / SAMPLE_RATE_HZ)
_GRID_HZ = np.geomspace(15.0, SAMPLE_RATE_HZ / 2, 128)
_WHITE_SPECTRA = 16


@dataclass(frozen=True)
class Voice:
    """The properties of a work's sound that do not depend on its content: affect and recording conditions."""

    pitch: float  # factor on every frequency, from register
    third: float  # frequency ratio of the third: minor 6/5 .. major 5/4
    mode: float  # -1 .. 1
    rough: float  # 0 .. 1
    energy: float  # 0 .. 1
    equalizer: np.ndarray  # (128,) amplitude gain of the recording on `_GRID_HZ`
    echoes: tuple[tuple[float, float], ...]  # (delay in seconds, gain) of each
    rng: np.random.Generator

    def gain(self, hertz: np.ndarray | float) -> np.ndarray:
        """Return the recording's amplitude gain at frequencies, in the shape of `hertz`."""
        return np.asarray(np.interp(hertz, _GRID_HZ, self.equalizer))


def make_voice(work: Work) -> Voice:
    """Make the voice of a work from its audible and shared factors."""
    rng = np.random.default_rng([work.seed, 3])
    factors = work.factors
    octave = np.log2(_GRID_HZ / 1000.0)
    center, width, height = (
        rng.uniform(-3.5, 3, (6, 1)),
        rng.uniform(0.2, 0.9, (6, 1)),
        rng.uniform(-9, 9, (6, 1)),
    )
    decibel = rng.uniform(-3, 3) * octave + (height * np.exp(-0.5 * ((octave - center) / width) ** 2)).sum(
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
        equalizer=10.0 ** (decibel / 20.0),
        echoes=tuple((float(d), float(g)) for d, g in zip(delays[:count], gains[:count], strict=True)),
        rng=rng,
    )


def band_gain(hertz: np.ndarray, low_hz: float, high_hz: float, slope: float = 2.0) -> np.ndarray:
    """Return a smooth band pass's amplitude gain: 1 inside, falling with order `slope` outside."""
    safe = np.maximum(hertz, 1.0)
    return 1.0 / np.sqrt((1 + (low_hz / safe) ** (2 * slope)) * (1 + (safe / high_hz) ** (2 * slope)))


def noise_table(voice: Voice, low_hz: float, high_hz: float, slope: float = 2.0, grains: int = 0) -> Float32:
    """Make equalized periodic noise (65536,) of RMS 1.

    `grains` > 0 gives that many impulses per second instead of white noise.
    """
    if grains:
        impulses = np.zeros(TABLE_SAMPLES, np.float32)
        count = max(1, round(grains * TABLE_SAMPLES / SAMPLE_RATE_HZ))
        places = voice.rng.integers(0, TABLE_SAMPLES, count)
        impulses[places] = voice.rng.standard_normal(count).astype(np.float32) ** 3
        spectrum = np.fft.rfft(impulses)
    else:
        spectrum = _white_spectrum(int(voice.rng.integers(_WHITE_SPECTRA)))
    shape = (voice.equalizer * band_gain(_GRID_HZ, low_hz, high_hz, slope)).astype(np.float32)
    table = np.fft.irfft(spectrum * np.interp(_TABLE_HZ, _GRID_HZ, shape).astype(np.float32)).astype(
        np.float32, copy=False
    )
    table = np.roll(table, int(voice.rng.integers(TABLE_SAMPLES)))
    return table / np.float32(_rms(table) + 1e-9)


@lru_cache(maxsize=_WHITE_SPECTRA)
def _white_spectrum(number: int) -> np.ndarray:
    """Return one of a few realizations of white noise; drawing one per work would take most of the time."""
    pairs = np.random.default_rng([number, 4]).standard_normal((2, len(_TABLE_HZ)), dtype=np.float32)
    return pairs[0] + 1j * pairs[1]


def _rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.dot(signal, signal) / len(signal)))


def line_table(voice: Voice, hertz: np.ndarray, amplitude: np.ndarray) -> Float32:
    """Make a periodic sum of sines (65536,), RMS 1, at the nearest table frequencies (0.24 Hz apart)."""
    inside = hertz < 0.48 * SAMPLE_RATE_HZ
    hertz, amplitude = hertz[inside], amplitude[inside] * voice.gain(hertz[inside])
    spectrum = np.zeros(len(_TABLE_HZ), np.complex64)
    bins = np.rint(hertz * TABLE_SAMPLES / SAMPLE_RATE_HZ).astype(int)
    np.add.at(spectrum, bins, amplitude * np.exp(2j * np.pi * voice.rng.random(len(hertz))))
    table = np.fft.irfft(spectrum).astype(np.float32)
    return table / np.float32(_rms(table) + 1e-12)


def from_table(table: Float32, first: int, count: int) -> Float32:
    """Return `count` samples of a periodic table from absolute sample `first` on."""
    start = first % len(table)
    if start + count <= len(table):
        return table[start : start + count]
    return np.resize(np.roll(table, -start), count)


def harmonic_wave(
    voice: Voice, f0_hz: float, slope: float = 1.0, formants_hz: tuple[float, ...] = (), odd: float = 1.0
) -> Float32:
    """Make one period (2048,) of a harmonic tone of RMS 1.

    Partial h has amplitude h ** -slope, raised near the formants. `odd` scales the even partials. The tone
    is equalized as for the fundamental `f0_hz` and has no partials above 7.5 kHz.
    """
    count = int(np.clip(7500.0 / f0_hz, 1, 60))
    number = np.arange(1, count + 1)
    amplitude = number ** -float(slope)
    if formants_hz:
        lift = np.full(count, 0.06)
        for formant_hz in formants_hz:
            lift += np.exp(-0.5 * (np.log2(number * f0_hz / formant_hz) / 0.3) ** 2)
        amplitude = amplitude * lift
    amplitude = amplitude * voice.gain(number * f0_hz) * np.where(number % 2, 1.0, odd)
    spectrum = np.zeros(_WAVE_SAMPLES // 2 + 1, np.complex64)
    spectrum[1 : count + 1] = amplitude * np.exp(1j * number**2 * 2.1)
    wave = np.fft.irfft(spectrum).astype(np.float32)
    return wave / np.float32(_rms(wave) + 1e-12)


def read_wavetable(wave: Float32, cycles: np.ndarray) -> Float32:
    """Read a wavetable at phases (n,) in cycles, which may be any real numbers."""
    return wave[((cycles % 1.0) * _WAVE_SAMPLES).astype(np.int32)]


def phase_cycles(hertz: np.ndarray) -> np.ndarray:
    """Integrate per-sample frequencies (n,) to phases (n,) in cycles."""
    return np.cumsum(hertz) / SAMPLE_RATE_HZ


def sample_times_s(duration_s: float) -> np.ndarray:
    """Return the times (n,) in seconds of a template's samples."""
    return np.arange(max(8, round(duration_s * SAMPLE_RATE_HZ))) / SAMPLE_RATE_HZ


def fade(time_s: np.ndarray, attack_s: float, release_s: float) -> np.ndarray:
    """Return an envelope (n,) with a linear attack and a linear release to 0 at the end."""
    left = time_s[-1] + 1 / SAMPLE_RATE_HZ - time_s
    return np.minimum(1.0, time_s / attack_s) * np.minimum(1.0, left / release_s)


def noise_burst(
    voice: Voice, time_s: np.ndarray, low_hz: float, high_hz: float, slope: float = 2.0
) -> Float32:
    """Make equalized noise (n,) of RMS 1, as long as `time_s`."""
    n = len(time_s)
    size = 1 << (n - 1).bit_length()
    spectrum = np.fft.rfft(voice.rng.standard_normal(size, dtype=np.float32))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    shape = voice.equalizer * band_gain(_GRID_HZ, low_hz, high_hz, slope)
    gain = np.interp(hertz, _GRID_HZ, shape).astype(np.float32)
    shaped = np.fft.irfft(spectrum * gain)[:n].astype(np.float32)
    return shaped / np.float32(_rms(shaped) + 1e-9)


def with_echoes(voice: Voice, template: Float32) -> Float32:
    """Add the room's echoes to a template (n,); returns (n + tail,) float32."""
    if not voice.echoes:
        return np.asarray(template, np.float32)
    tail = round(max(delay for delay, _ in voice.echoes) * SAMPLE_RATE_HZ)
    out = np.zeros(len(template) + tail, np.float32)
    out[: len(template)] = template
    for delay_s, gain in voice.echoes:
        shift = round(delay_s * SAMPLE_RATE_HZ)
        out[shift : shift + len(template)] += np.float32(gain) * template
    return out
