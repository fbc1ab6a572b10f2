"""Content of the zoo: a test card whose number, colors and orientation can be read back, and tones.

The card has a color in each corner, its number as eight bits of Gray code across the middle, and a foot that
is gray, or transparent where a format has alpha. The tone of every channel changes its pitch each second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import SAMPLE_RATE_HZ, level_dbfs

WIDTH_PX, HEIGHT_PX = 96, 64
# Top left, top right, bottom left, bottom right: far enough apart to tell every turn and mirror image.
CORNERS = ((200, 60, 60), (60, 190, 60), (60, 60, 200), (190, 180, 60))
GRAY, WHITE = (128, 128, 128), (255, 255, 255)
BITS = 8
# Each second its own pitch. Primes: no shift but 0 lays all of them upon themselves.
PITCHES_HZ = (443.0, 587.0, 751.0, 919.0, 1097.0, 1283.0)
FIRST_AMPLITUDE, OTHER_AMPLITUDE = 0.4, 0.2

Picture = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def card(
    number: int, width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX, *, alpha: bool = False
) -> Picture:
    """Draw a card, (H, W, 3) uint8 RGB, or (H, W, 4) with a transparent black foot."""
    picture = np.full((height_px, width_px, 4), (*GRAY, 255), np.uint8)
    wide, high = width_px // 6, height_px // 4
    for corner, color in enumerate(CORNERS):
        rows = slice(-high, None) if corner >= 2 else slice(0, high)
        columns = slice(-wide, None) if corner % 2 else slice(0, wide)
        picture[rows, columns, :3] = color
    code = number % 256 ^ number % 256 >> 1
    for bit in range(BITS):
        columns = slice(bit * width_px // BITS, (bit + 1) * width_px // BITS)
        light = 230 if code >> (BITS - 1 - bit) & 1 else 25
        picture[height_px * 3 // 8 : height_px * 5 // 8, columns, :3] = light
    if alpha:
        picture[height_px * 11 // 16 :, width_px * 3 // 8 : width_px * 5 // 8] = 0
        return picture
    return np.ascontiguousarray(picture[..., :3])


@dataclass(frozen=True)
class Read:
    """Contents of a card."""

    number: int | None  # None: unreadable
    corners: tuple[tuple[int, ...], ...]
    foot: tuple[int, ...]
    combed: bool  # even and odd rows show different numbers


def read_card(picture: Picture) -> Read:
    """Read an upright card of any size. picture: (H, W, 3) uint8 RGB."""
    height, width = picture.shape[:2]

    def mean(top: float, bottom: float, left: float, right: float) -> tuple[int, ...]:
        rows = slice(round(height * top), max(round(height * top) + 1, round(height * bottom)))
        columns = slice(round(width * left), max(round(width * left) + 1, round(width * right)))
        return tuple(round(float(v)) for v in picture[rows, columns].reshape(-1, 3).mean(axis=0))

    corners = tuple(mean(top, top + 0.13, left, left + 0.08) for top in (0.06, 0.81) for left in (0.04, 0.88))
    band = picture[round(height * 0.43) : round(height * 0.57)].mean(axis=2)
    numbers = [_number(band), _number(band[::2]), _number(band[1::2])]
    return Read(numbers[0], corners, mean(0.8, 0.95, 0.45, 0.55), len(band) > 3 and numbers[1] != numbers[2])


def _number(band: npt.NDArray[np.floating]) -> int | None:
    """Decode the bits of the card's middle. band: (rows, W) brightness."""
    width, code = band.shape[1], 0
    for bit in range(BITS):
        left, right = (bit + 0.3) * width / BITS, (bit + 0.7) * width / BITS
        light = float(band[:, int(left) : max(int(left) + 1, round(right))].mean())
        if abs(light - 128) < 30:
            return None
        code = code << 1 | (light > 128)
    number = 0
    while code:
        number ^= code
        code >>= 1
    return number


def tone(channels: int, rate_hz: int, seconds: float, first_second: int = 0) -> Float32:
    """Synthesize (n, channels) float32: the first channel is twice as loud as each of the others."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    pitches = np.resize(np.roll(PITCHES_HZ, -first_second), int(seconds) + 1)[time_s.astype(int)]
    samples = np.empty((len(time_s), channels), np.float32)
    for channel in range(channels):
        amplitude = OTHER_AMPLITUDE if channel else FIRST_AMPLITUDE
        samples[:, channel] = amplitude * np.sin(
            2 * np.pi * pitches * (1 + 0.11 * (channel % 8)) * (time_s % 1)
        )
    return samples * _envelope(time_s, first_second)[:, None]


def _envelope(time_s: npt.NDArray[np.float64], first_second: int) -> Float32:
    """Return a random loudness by the 25 ms, in [0.5, 1], which tells a shift by a period."""
    n = int(time_s[-1] / 0.025) + 2 if len(time_s) else 1
    steps = np.random.default_rng(first_second).uniform(0.5, 1.0, n)
    return np.interp(time_s / 0.025, np.arange(n), steps).astype(np.float32)


@dataclass(frozen=True)
class Second:
    """Pitch and level of one second of sound."""

    pitch_hz: float | None  # None: silence
    level_db: float


def seconds_of(samples: Float32) -> list[Second]:
    """Return pitch and level by the second. samples: (n,) at 16 kHz; a rest below 0.25 s is left out."""
    seconds = []
    for start in range(0, len(samples), SAMPLE_RATE_HZ):
        part = samples[start : start + SAMPLE_RATE_HZ]
        if len(part) < SAMPLE_RATE_HZ / 4:
            break
        level = max(level_dbfs(part), -120.0)
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 4 * SAMPLE_RATE_HZ))
        seconds.append(Second(float(spectrum.argmax()) / 4 if level > -60 else None, level))
    return seconds


@dataclass(frozen=True)
class Fit:
    """Comparison of sound with one second of its reference."""

    second: int
    lag_s: float  # by how much it comes later
    difference_db: float  # level of what differs after that shift, relative to the reference


def fits(samples: Float32, reference: Float32, most_s: float = 0.25) -> list[Fit]:
    """Fit sound to every second of its reference that is not silent, shifted by at most ``most_s``.

    Both are (n,) at 16 kHz. A rest of the reference below 0.25 s is left out.
    """
    most, found = round(most_s * SAMPLE_RATE_HZ), list[Fit]()
    padded = np.pad(samples, (most, max(0, len(reference) - len(samples)) + most)).astype(np.float64)
    for second, start in enumerate(range(0, len(reference), SAMPLE_RATE_HZ)):
        there = reference[start : start + SAMPLE_RATE_HZ].astype(np.float64)
        if len(there) < SAMPLE_RATE_HZ / 4 or level_dbfs(there) < -60:
            continue
        here = padded[start : start + len(there) + 2 * most]
        size = 1 << len(here).bit_length()
        product = np.fft.irfft(np.fft.rfft(here, size) * np.conj(np.fft.rfft(there, size)), size)[
            : 2 * most + 1
        ]
        sums = np.concatenate([[0.0], np.cumsum(np.square(here))])
        power = sums[len(there) : len(there) + 2 * most + 1] - sums[: 2 * most + 1]
        at = int((product / np.sqrt(np.maximum(power, 1e-3))).argmax())
        left = float(np.square(here[at : at + len(there)] - there).sum() / np.square(there).sum())
        found.append(Fit(second, (at - most) / SAMPLE_RATE_HZ, 10 * float(np.log10(max(left, 1e-12)))))
    return found
