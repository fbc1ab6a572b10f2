"""Sounds of the content classes, as parts that can start at any time.

In: a `Voice` and the mean period of the work's events. Out: a `Sound`. A class differs from the others in
its structure in time and in the ratios of its partials. Notes follow the mode, pitches the register,
density and length follow energy and tempo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vaemotion.data.art.synthesis import (
    Voice,
    fade,
    harmonic_wave,
    noise_burst,
    noise_table,
    phase_cycles,
    read_wavetable,
    sample_times_s,
)

_PI = np.pi
Envelope = Callable[[np.ndarray], np.ndarray]
"""Maps the phase within the beat, (n,) float32 in [0, 1), to a gain (n,) float32."""


@dataclass(frozen=True)
class Buzz:
    """A sustained tone whose phase follows time and beat.

    The phase in cycles at time t is `base_hz * t + per_beat * warp(position)`.
    """

    wave: np.ndarray
    base_hz: float
    per_beat: float
    envelope: Envelope


@dataclass(frozen=True)
class Sound:
    """The parts of a class's sound: templates at events, textures under an envelope, an optional buzz."""

    templates: tuple[np.ndarray, ...] = ()  # used in turn
    lead_s: float = 0.0  # how long before its event a template begins
    textures: tuple[tuple[np.ndarray, Envelope], ...] = ()
    buzz: Buzz | None = None


def _constant(position: np.ndarray) -> np.ndarray:
    return np.ones_like(position)


def _scale(voice: Voice) -> tuple[float, float, float, float]:
    """Return four notes as frequency ratios, rising in major and falling in minor (Gerardi & Gerken 1995)."""
    notes = (1.0, voice.third, 1.5, 2.0)
    return notes if voice.mode >= 0 else (2.0, 1.5, voice.third, 1.0)


# --- classes: (voice, mean period of the events in s) -> Sound ----------------------------------------------


def _baby_cry(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(min(0.95, 0.78 * period_s))
    x = t / t[-1]
    f0 = 430.0 * v.pitch**0.6
    templates = []
    for high in (1.0, 1.12):
        bend = 0.82 + 0.32 * np.sin(_PI * x**0.7) + 0.02 * np.sin(2 * _PI * 6.5 * t)
        cycles = phase_cycles(f0 * high * bend)
        open_, shut = harmonic_wave(v, f0, 0.5, (1100.0, 3300.0)), harmonic_wave(v, f0, 0.9, (600.0, 2500.0))
        mouth = np.sin(_PI * x)
        voiced = (mouth * read_wavetable(open_, cycles) + (1 - mouth) * read_wavetable(shut, cycles)) * fade(
            t, 0.05, 0.18
        )
        templates.append(voiced)
    return Sound(tuple(templates))


def _chainsaw(v: Voice, period_s: float) -> Sound:
    base = v.rng.uniform(60, 100) * v.pitch**0.6
    buzz = Buzz(
        harmonic_wave(v, base, 0.35, (400.0, 1800.0)),
        base,
        round(0.5 * base * period_s),
        lambda p: 0.55 + 0.6 * (0.5 + 0.5 * np.cos(2 * _PI * p)),
    )
    rasp = noise_table(v, 1500, 6000)
    return Sound(textures=((rasp, lambda p: 0.15 + 0.25 * (0.5 + 0.5 * np.cos(2 * _PI * p))),), buzz=buzz)


def _clock_tick(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(0.09)
    templates = []
    for pitch in (1.0, v.rng.uniform(0.7, 0.85)):
        hertz = pitch * v.pitch * v.rng.uniform(1200, 2600) * np.array([1.0, 1.63, 2.4])
        ring = sum(v.gain(f) * np.sin(2 * _PI * f * t) * np.exp(-t / 0.014) for f in hertz if f < 7500)
        click = noise_burst(v, t, 1500, 7000) * np.exp(-t / 0.003)
        templates.append(ring + 0.9 * v.gain(3000.0) * click)
    return Sound(tuple(templates))


def _dog_bark(v: Voice, period_s: float) -> Sound:
    templates = []
    for high in (1.0, v.rng.uniform(0.85, 1.1)):
        t = sample_times_s(min(v.rng.uniform(0.14, 0.22), 0.8 * period_s))
        x = t / t[-1]
        f0 = v.rng.uniform(280, 420) * v.pitch * high
        cycles = phase_cycles(f0 * (0.75 + 0.5 * np.sin(_PI * np.minimum(1.0, 1.25 * x))))
        open_, shut = harmonic_wave(v, f0, 0.4, (1200.0, 2400.0)), harmonic_wave(v, f0, 0.8, (500.0,))
        mouth = np.sin(_PI * np.sqrt(x))
        voiced = mouth * read_wavetable(open_, cycles) + (1 - mouth) * read_wavetable(shut, cycles)
        bark = (voiced + 0.35 * noise_burst(v, t, 600, 4000)) * np.minimum(1, x / 0.06) * (1 - x) ** 1.2
        if v.energy > 0.5 and period_s > 0.55:  # at high energy the dog barks twice
            bark = np.concatenate([bark, np.zeros(800), 0.8 * bark])
        templates.append(bark)
    return Sound(tuple(templates))


def _fire(v: Voice, period_s: float) -> Sound:
    crackle = noise_table(v, 900, 6000, 1.0, grains=round(6 + 26 * v.energy))
    roar = noise_table(v, 60, 350, 1.0)
    t = sample_times_s(0.05)
    pops = tuple(
        noise_burst(v, t, 500 * a, 4000 * a, 1.0) * np.exp(-t / (0.006 * a)) for a in (1.0, 1.6, 0.7)
    )
    textures = (
        (crackle, lambda p: 0.75 * _constant(p)),
        (roar, lambda p: 0.28 + 0.12 * np.cos(2 * _PI * p)),
    )
    return Sound(pops, textures=textures)


def _helicopter(v: Voice, period_s: float) -> Sound:
    thump = noise_table(v, 60 * v.pitch, 700 * v.pitch, 1.2)
    hiss = noise_table(v, 1200, 5000, 1.5)

    def blade(p: np.ndarray) -> np.ndarray:
        return np.exp(-4.0 * ((5.0 * p) % 1.0))

    return Sound(textures=((thump, lambda p: 2.0 * blade(p)), (hiss, lambda p: 0.12 + 0.5 * blade(p + 0.06))))


def _rain(v: Voice, period_s: float) -> Sound:
    drops = noise_table(v, 1500, 7000, 1.0, grains=round(120 + 500 * v.energy))
    hiss = noise_table(v, 700, 7000, 0.8)

    def gust(p: np.ndarray) -> np.ndarray:
        return 0.75 + 0.4 * np.exp(-2.5 * (p % 1.0))

    return Sound(textures=((drops, lambda p: 0.6 * gust(p)), (hiss, lambda p: 0.7 * gust(p))))


def _rooster(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(min(1.15, 0.82 * period_s))
    x = t / t[-1]
    f0 = 620.0 * v.pitch**0.7 * v.rng.uniform(0.9, 1.1)
    contour = np.interp(x, [0, 0.1, 0.18, 0.3, 0.42, 0.75, 1.0], [0.7, 1.05, 0.8, 1.15, 1.45, 1.35, 0.75])
    loud = np.interp(
        x, [0, 0.03, 0.15, 0.19, 0.23, 0.34, 0.38, 0.45, 0.8, 1], [0, 1, 0.8, 0.05, 0.9, 0.8, 0.2, 1, 0.9, 0]
    )
    crow = (
        read_wavetable(harmonic_wave(v, f0 * 1.2, 0.3, (1500.0, 2900.0)), phase_cycles(f0 * contour)) * loud
    )
    return Sound((crow + 0.12 * loud * noise_burst(v, t, 1500, 6000),))


def _sea_waves(v: Voice, period_s: float) -> Sound:
    deep, hiss = noise_table(v, 90, 700, 1.2), noise_table(v, 900, 5500, 1.0)

    def swell(p: np.ndarray) -> np.ndarray:  # slow rise, peak at the event, decaying hiss
        x = p % 1.0
        return np.maximum(np.exp(-2.6 * x), np.clip((x - 0.55) / 0.45, 0, 1) ** 2)

    return Sound(
        textures=((deep, lambda p: 0.2 + 1.2 * swell(p + 0.08)), (hiss, lambda p: 0.08 + 1.2 * swell(p)))
    )


def _sneeze(v: Voice, period_s: float) -> Sound:
    lead_s = min(0.4, 0.42 * period_s)
    t = sample_times_s(min(0.85, 0.9 * period_s))
    x = (t - lead_s) / (t[-1] - lead_s)
    before = np.clip(t / lead_s, 0, 1)
    f0 = 300.0 * v.pitch
    ah = read_wavetable(harmonic_wave(v, f0, 0.9, (800.0, 1300.0)), phase_cycles(f0 * (0.8 + 0.5 * before)))
    inhale = np.where(t < 0.85 * lead_s, before**1.5, 0.0) * (0.22 * ah + 0.16 * noise_burst(v, t, 800, 3500))
    blow = np.where(x >= 0, np.exp(-3.5 * np.maximum(x, 0)) * np.clip(1 - x, 0, 1), 0.0)
    hiss = blow * (noise_burst(v, t, 1200, 7000) + 1.2 * np.clip(x * 2, 0, 1) * noise_burst(v, t, 200, 1000))
    return Sound((inhale + 1.6 * hiss,), lead_s)


def _bell(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(1.5)
    templates = []
    for pitch in (1.0, v.third if v.mode >= 0 else 1 / v.third):
        f0 = 420.0 * v.pitch * pitch
        ratios = np.array([0.5, 1.0, v.third, 1.5, 2.0, 2.67, 3.01, 4.1, 5.43])
        ring = np.zeros(len(t), np.float32)
        phase = (2 * _PI * f0 * t).astype(np.float32)
        for ratio, amplitude in zip(ratios, (0.5, 1, 0.9, 0.5, 0.9, 0.6, 0.4, 0.4, 0.3), strict=True):
            if f0 * ratio < 7500:
                decay = np.exp(-t * (1.2 + 0.9 * ratio)).astype(np.float32)
                ring += np.float32(amplitude * v.gain(f0 * ratio)) * np.sin(np.float32(ratio) * phase) * decay
        templates.append(ring * fade(t, 0.002, 0.3))
    return Sound(tuple(templates))


def _drum(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(0.32)
    templates = []
    for pitch, snare in ((1.0, 0.25), (1.35, 0.8), (1.0, 0.25), (0.85, 0.5)):
        f0 = v.rng.uniform(75, 110) * v.pitch * pitch
        skin = np.sin(2 * _PI * phase_cycles(f0 * (1 + 1.2 * np.exp(-t / 0.025)))) * np.exp(-t / 0.11)
        ring = 0.5 * np.sin(2 * _PI * phase_cycles(f0 * (1.59 + 0.8 * np.exp(-t / 0.02)))) * np.exp(-t / 0.06)
        rattle = snare * noise_burst(v, t, 900, 5500, 1.0) * np.exp(-t / 0.05)
        templates.append((v.gain(f0) * (skin + ring) + 0.6 * rattle) * np.minimum(1, t / 0.002))
    return Sound(tuple(templates))


def _piano(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(0.9)
    templates = []
    for ratio in _scale(v):
        f0 = 262.0 * v.pitch * ratio
        bright, soft = harmonic_wave(v, f0, 0.9), harmonic_wave(v, f0, 2.0)
        cycles = f0 * t
        note = 0.9 * read_wavetable(bright, cycles) * np.exp(-t / 0.10) + read_wavetable(
            soft, cycles * 1.001
        ) * np.exp(-t / 0.35)
        templates.append(note * fade(t, 0.004, 0.2))
    return Sound(tuple(templates))


def _strings(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(1.12 * period_s)
    templates = []
    for ratio in _scale(v):
        f0 = 294.0 * v.pitch * ratio
        vibrato = 1 + 0.008 * np.minimum(1, t / 0.2) * np.sin(2 * _PI * 5.5 * t)
        tone = read_wavetable(harmonic_wave(v, f0, 0.8, (450.0, 1000.0, 2800.0)), phase_cycles(f0 * vibrato))
        templates.append(tone * fade(t, min(0.09, 0.3 * period_s), 0.16 * period_s))
    bow = noise_table(v, 1500, 5000)
    return Sound(tuple(templates), textures=((bow, lambda p: 0.05 * _constant(p)),))


def _abstract(v: Voice, period_s: float) -> Sound:
    t = sample_times_s(min(0.9, 0.95 * period_s))
    x = t / t[-1]
    templates = []
    for _ in range(3):
        f0 = 330.0 * v.pitch * v.rng.choice(_scale(v))
        sweep = f0 * 2.0 ** (v.rng.choice((-1, 1)) * v.rng.uniform(0.6, 1.3) * x)
        ratio, depth = v.rng.choice((0.5, 1.41, 2.0, 2.76)), v.rng.uniform(0.5, 2.5) * (0.4 + v.rough)
        cycles = phase_cycles(sweep)
        tone = np.sin(2 * _PI * cycles + depth * np.sin(2 * _PI * ratio * cycles))
        templates.append(v.gain(sweep) * tone * fade(t, 0.06, 0.12))
    return Sound(tuple(templates))


SOUNDS: dict[str, Callable[[Voice, float], Sound]] = {
    "baby cry": _baby_cry,
    "chainsaw": _chainsaw,
    "clock tick": _clock_tick,
    "dog bark": _dog_bark,
    "fire crackling": _fire,
    "helicopter": _helicopter,
    "rain": _rain,
    "rooster": _rooster,
    "sea waves": _sea_waves,
    "sneeze": _sneeze,
    "bell": _bell,
    "drum": _drum,
    "piano": _piano,
    "strings": _strings,
    "abstract shape": _abstract,
}
