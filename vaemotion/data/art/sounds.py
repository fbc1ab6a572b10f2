"""Sound of a work, synthesized in time with the work's events.

In: a `Work` and a range of samples. Out: float32 mono at 16 kHz. A class differs from the others in its
structure in time and in the ratios of its partials. Its mean spectrum is masked by equalization, background
noise, a pad and register. Every sound carries the affect: mode sets chord, pad and melody; register all
pitches; roughness the amplitude modulation at 30 .. 45 Hz, beating and distortion; energy loudness and
density; tempo the event rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vaemotion.contract.audio import SAMPLE_RATE_HZ
from vaemotion.data.art.sound_classes import SOUNDS, Sound
from vaemotion.data.art.synthesis import (
    Voice,
    from_table,
    line_table,
    make_voice,
    noise_table,
    read_wavetable,
    with_echoes,
)
from vaemotion.data.art.works import Work, beat_position, event_rate_hz, event_times

_PI = np.pi
_QUIET_DB = -29.0  # level of the class's sound at energy -1, in dB re full scale
_DYNAMICS_DB = 15.0  # gain from energy -1 to energy +1


@dataclass(frozen=True)
class _Mix:
    """The parts of a work's sound that do not depend on time."""

    sound: Sound
    level: float
    background: np.ndarray  # noise table
    background_level: float
    pads: tuple[np.ndarray, np.ndarray]  # low and high chord
    pad_level: float
    climb: float  # -1 .. 1: the pad falls .. rises within a beat
    rough_depth: float
    rough_hz: float
    drive: float


def synthesize_samples(work: Work, first: int, count: int) -> np.ndarray:
    """Synthesize samples [first, first + count) of the work's sound: (count,) float32 in [-1, 1]."""
    mix = _mix(work)
    time_s = np.arange(first, first + count) / SAMPLE_RATE_HZ
    position = beat_position(work, time_s)
    phase = (position - np.floor(position)).astype(np.float32)
    out = _render(work, mix.sound, first, time_s, position, phase)
    out *= np.float32(mix.level)
    climb = 0.5 + np.float32(mix.climb) * (phase - 0.5)  # share of the high chord within each beat
    low, high = (from_table(pad, first, count) for pad in mix.pads)
    out += np.float32(mix.pad_level) * (0.5 + 0.5 * np.exp(-3 * phase)) * (low + climb * (high - low))
    if mix.rough_depth > 0.02:
        turns = mix.rough_hz * time_s
        wobble = np.cos(np.float32(2 * _PI) * (turns - np.floor(turns)).astype(np.float32))
        out *= np.float32(1 - mix.rough_depth / 2) - np.float32(mix.rough_depth / 2) * wobble
    out += np.float32(mix.background_level) * from_table(mix.background, first, count)
    return out / np.sqrt(1 + np.float32(mix.drive**2) * out * out)  # saturates at 1 / drive, so nothing clips


def _render(
    work: Work, sound: Sound, first: int, time_s: np.ndarray, position: np.ndarray, phase: np.ndarray
) -> np.ndarray:
    """Render the class's sound without pad and background: (count,) float32, RMS about 1."""
    count = len(time_s)
    out = np.zeros(count, np.float32)
    for table, envelope in sound.textures:
        out += envelope(phase) * from_table(table, first, count)
    if sound.buzz is not None:
        buzz = sound.buzz
        cycles = buzz.base_hz * time_s + buzz.per_beat * (
            position + 0.11 * np.sin(np.float32(2 * _PI) * phase)
        )
        out += buzz.envelope(phase) * read_wavetable(buzz.wave, cycles)
    if sound.templates:
        reach_s = max(len(template) for template in sound.templates) / SAMPLE_RATE_HZ
        index, times = event_times(work, time_s[0] - reach_s - 0.1, time_s[-1] + sound.lead_s + 0.1)
        for k, event_s in zip(index, times, strict=True):
            template = sound.templates[int(k) % len(sound.templates)]
            start = round((event_s - sound.lead_s) * SAMPLE_RATE_HZ) - first
            low, high = max(0, start), min(count, start + len(template))
            if low < high:
                out[low:high] += template[low - start : high - start]
    return out


@lru_cache(maxsize=4)
def _mix(work: Work) -> _Mix:
    voice = make_voice(work)
    sound = SOUNDS[work.content](voice, 1 / event_rate_hz(work))
    sound = _normalized(voice, sound, event_rate_hz(work))
    rng = voice.rng
    level = 10 ** ((_QUIET_DB + _DYNAMICS_DB * voice.energy + rng.uniform(-1.5, 1.5)) / 20)
    if sound.templates:
        # Sparse events are limited by their peak at full energy, so that energy stays audible.
        peak = max(float(np.abs(template).max()) for template in sound.templates)
        level *= min(1.0, 2.5 / (peak * 10 ** ((_QUIET_DB + _DYNAMICS_DB + 1.5) / 20)))
    low = 10 ** rng.uniform(1.5, 3.2)
    background = noise_table(voice, low, low * 10 ** rng.uniform(0.6, 1.8), rng.uniform(0.6, 1.5))
    return _Mix(
        sound=sound,
        level=level,
        background=background,
        background_level=level * 10 ** (rng.uniform(-30, -14) / 20),
        pads=(_pad(voice, 1.0), _pad(voice, 2.0)),
        climb=voice.mode,
        pad_level=level * 10 ** (rng.uniform(0, 4) / 20),
        rough_depth=0.92 * voice.rough,
        rough_hz=rng.uniform(30, 45),
        drive=1.0 + 2.5 * voice.rough**2,
    )


def _normalized(voice: Voice, sound: Sound, rate_hz: float) -> Sound:
    """Scale templates to a mean power of about 1 at this event rate, and add the room's echoes."""
    if not sound.templates:
        return sound
    energy = np.mean([float(np.sum(np.square(template))) for template in sound.templates]) / SAMPLE_RATE_HZ
    gain = np.float32(1 / np.sqrt(energy * rate_hz + 1e-12))
    templates = tuple(
        with_echoes(voice, (gain * template).astype(np.float32)) for template in sound.templates
    )
    return Sound(templates, sound.lead_s, sound.textures, sound.buzz)


def _pad(voice: Voice, octave: float) -> np.ndarray:
    """Make the sustained chord that accompanies every sound, as a periodic table.

    Its third carries the mode, major is brighter, and roughness adds beating tones. `synthesize_samples`
    lets the pad rise within each beat in major and fall in minor, because rising melodies sound happier
    than falling ones (Gerardi & Gerken 1995; Collier & Hubbard 2001). Equalization does not mask that cue.
    """
    root = 220.0 * octave * voice.pitch
    tones = [(1.0, 1.0), (voice.third, 1.0), (1.5, 0.6)]
    if voice.rough > 0.05:
        tones += [(ratio * 1.06, amplitude * 1.1 * voice.rough) for ratio, amplitude in tones]
    partials = np.arange(1, 6)
    fall = partials ** -(1.6 - 0.8 * voice.mode)
    hertz = np.concatenate([root * ratio * partials for ratio, _ in tones])
    return line_table(voice, hertz, np.concatenate([amplitude * fall for _, amplitude in tones]))
