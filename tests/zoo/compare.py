"""Comparison of device, loader and reference on one file of the zoo.

What is known from a file's making stands above what the reference says. A finding is a difference;
``wanted.py`` lists those that are meant to be.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np

from tests.zoo import reference
from tests.zoo.card import CORNERS, GRAY, WHITE, Float32, Read, fits, seconds_of
from tests.zoo.decoders import Seen, by_device, by_loader
from tests.zoo.stills import NUMBER
from tests.zoo.workshop import ZooFile
from tests.zoo.zoo import zoo
from vaemotion.contract.audio import SAMPLE_RATE_HZ

TIME_S, LENGTH_S, LAG_S = 0.002, 0.025, 0.005
PITCH_HZ, LEVEL_DB = 6.0, 0.7
PICTURE_LEVELS = 6.0  # mean difference of a still from Pillow's, of 255
MOST_NOTICES = 5
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Finding:
    """One difference. check: who and what, as "device.count" or "both.samples"."""

    check: str
    text: str


@dataclass(frozen=True)
class Result:
    """All differences on one file, and what the device read of it."""

    name: str
    family: str
    facts: str
    findings: tuple[Finding, ...]


@cache
def _by_name() -> dict[str, ZooFile]:
    return {file.name: file for file in zoo()}


def examine(path: Path) -> Result:
    """Read one file three ways and compare. The file's name says which of the zoo it is."""
    file = _by_name()[path.name]
    kind = "image" if file.is_still else "video" if file.cards else "audio"
    # A relative path, so that a name is seen as a user gives it.
    with contextlib.chdir(path.parent):
        path = Path(path.name)
        device = by_device(path, file.turns, file.mirrored)
        loader = by_loader(path, kind, file.turns, file.mirrored)
        said = reference.of(file, path)
    return Result(file.name, file.family, _facts(device), tuple(_findings(file, device, loader, said)))


def _facts(seen: Seen) -> str:
    if seen.error:
        return "refused"
    pictures = f"{len(seen.times_s)} pictures to {seen.times_s[-1]:.2f} s" if seen.times_s else ""
    sound = f"{len(seen.samples) / SAMPLE_RATE_HZ:.2f} s of sound" if seen.samples is not None else ""
    return ", ".join(
        part for part in (pictures, sound, f"{len(seen.notices)} notices" * bool(seen.notices)) if part
    )


def _findings(file: ZooFile, device: Seen, loader: Seen, said: Seen) -> Iterator[Finding]:
    for side, seen, may_refuse in (
        ("device", device, file.device_may_refuse),
        ("loader", loader, file.loader_may_refuse),
    ):
        if seen.error:
            if not may_refuse:
                yield Finding(f"{side}.refused", seen.error.rpartition("/")[2])
            continue
        compared = _still(file, seen, said) if file.is_still else _film(file, seen, said)
        yield from (Finding(f"{side}.{check}", text) for check, text in compared)
    if device.notices and not file.notices and not file.device_may_refuse:
        yield Finding("device.notices", f"{len(device.notices)}, first: {device.notices[0]}")
    if len(device.notices) > MOST_NOTICES:
        yield Finding("device.many-notices", f"{len(device.notices)}, last: {device.notices[-1]}")
    yield from (Finding("device.events", fault) for fault in device.faults)
    if not device.error and not loader.error:
        yield from (Finding(f"both.{check}", text) for check, text in _alike(device, loader))


def _alike(device: Seen, loader: Seen) -> Iterator[tuple[str, str]]:
    if device.times_s != loader.times_s:
        yield (
            "times",
            f"{len(device.times_s)} and {len(loader.times_s)} times, "
            f"{_first_difference(device.times_s, loader.times_s)}",
        )
    elif device.hashes != loader.hashes:
        n = sum(a != b for a, b in zip(device.hashes, loader.hashes, strict=True))
        yield "pictures", f"{n} of {len(device.hashes)} pictures differ"
    one, other = _samples(device), _samples(loader)
    if len(one) != len(other):
        yield "samples", f"{len(one)} and {len(other)} samples"
    elif not np.array_equal(one, other):
        yield "samples", f"differ by at most {np.abs(one - other).max():.2g}"


def _samples(seen: Seen) -> Float32:
    return np.zeros(0, np.float32) if seen.samples is None else seen.samples


def _first_difference(some: list[float], others: list[float]) -> str:
    for k, (a, b) in enumerate(zip_longest(some, others)):
        if a is None or b is None or abs(a - b) > TIME_S:
            return (
                f"number {k}: {'none' if a is None else f'{a:.3f}'} and {'none' if b is None else f'{b:.3f}'}"
            )
    return "all within 2 ms"


def _still(file: ZooFile, seen: Seen, said: Seen) -> Iterator[tuple[str, str]]:
    if len(seen.times_s) != 1:
        yield "count", f"{len(seen.times_s)} pictures of 1"
    size = file.truth.size_px or said.size_px
    if size is not None and seen.size_px != size:
        yield "size", f"{seen.size_px}, not {size}"
        return
    if file.color_tolerance is not None and seen.cards[0].number != NUMBER:
        yield "content", f"the card reads {seen.cards[0].number}, not {NUMBER}"
    yield from _colors(file, seen.cards[:1])
    if said.picture is not None and seen.picture is not None and seen.picture.shape == said.picture.shape:
        levels = float(np.abs(seen.picture.astype(np.int16) - said.picture).mean())
        if levels > PICTURE_LEVELS:
            yield "picture", f"differs from Pillow's by {levels:.1f} levels on average"


def _film(file: ZooFile, seen: Seen, said: Seen) -> Iterator[tuple[str, str]]:
    truth = file.truth
    times = list(truth.times_s) if truth.times_s is not None else said.times_s
    numbers = list(truth.numbers) if truth.numbers is not None else [card.number for card in said.cards]
    if len(seen.times_s) != len(times):
        yield (
            "count",
            f"{len(seen.times_s)} pictures, not {len(times)}; {_first_difference(seen.times_s, times)}",
        )
    elif any(abs(a - b) > TIME_S for a, b in zip(seen.times_s, times, strict=True)):
        yield "times", f"{_first_difference(seen.times_s, times)}"
    if file.cards:
        read = [card.number for card in seen.cards]
        if len(read) == len(numbers) and read != numbers:
            k = next(k for k, (a, b) in enumerate(zip(read, numbers, strict=True)) if a != b)
            yield "content", f"picture {k} shows card {read[k]}, not {numbers[k]}"
        size = truth.size_px or said.size_px
        if seen.size_px != size:
            yield "size", f"{seen.size_px}, not {size}"
        if sum(card.combed for card in seen.cards) > sum(card.combed for card in said.cards):
            yield "combed", f"{sum(card.combed for card in seen.cards)} pictures of two fields"
        yield from _colors(file, [seen.cards[0], seen.cards[len(seen.cards) // 2]] if seen.cards else [])
    yield from _sound(file, seen, said)


def _colors(file: ZooFile, cards: list[Read]) -> Iterator[tuple[str, str]]:
    if file.color_tolerance is None:
        return
    drawn = np.array([*CORNERS, WHITE if file.alpha else GRAY], np.float64)  # (5, 3)
    if file.gray:
        drawn = np.repeat((drawn @ LUMA)[:, None], 3, axis=1)
    for card in cards:
        difference = np.abs(np.array([*card.corners, card.foot]) - drawn).max(axis=1)
        worst = int(difference.argmax())
        if difference[worst] > file.color_tolerance:
            place = ("top left", "top right", "bottom left", "bottom right", "foot")[worst]
            shown = (*card.corners, card.foot)[worst]
            yield "colors", f"{place} is {shown}, not {tuple(round(v) for v in drawn[worst])}"
            return


def _sound(file: ZooFile, seen: Seen, said: Seen) -> Iterator[tuple[str, str]]:
    samples, expected = _samples(seen), _samples(said)
    length_s = len(expected) / SAMPLE_RATE_HZ if file.truth.sound_s is None else file.truth.sound_s
    if abs(len(samples) / SAMPLE_RATE_HZ - length_s) > LENGTH_S:
        yield "sound-length", f"{len(samples) / SAMPLE_RATE_HZ:.3f} s, not {length_s:.3f} s"
    if file.sound_difference_db is None or not len(samples) or not len(expected) or not expected.any():
        return
    found = fits(samples, expected)
    worst = max(found, key=lambda fit: abs(fit.lag_s), default=None)
    if worst is not None and abs(worst.lag_s) > LAG_S:
        yield "sound-time", f"late by {1000 * worst.lag_s:.1f} ms in second {worst.second}"
    for second, (a, b) in enumerate(zip(seconds_of(samples), seconds_of(expected), strict=False)):
        pitch = b.pitch_hz
        if file.truth.pitches_hz is not None:
            pitch = file.truth.pitches_hz[second] if second < len(file.truth.pitches_hz) else None
        if (a.pitch_hz is None) != (pitch is None) or abs((a.pitch_hz or 0) - (pitch or 0)) > PITCH_HZ:
            yield "pitch", f"{a.pitch_hz} Hz in second {second}, not {pitch}"
            break
        if max(a.level_db, b.level_db) > -60 and abs(a.level_db - b.level_db) > LEVEL_DB:
            yield "level", f"{a.level_db:.1f} dB in second {second}, not {b.level_db:.1f}"
            break
    worst = max(found, key=lambda fit: fit.difference_db, default=None)
    if worst is not None and worst.difference_db > file.sound_difference_db:
        yield "sound", f"differs by {worst.difference_db:.0f} dB in second {worst.second}"


def printable(name: str) -> str:
    """Return a name without line breaks and without bytes that are no UTF-8."""
    return (
        os.fsencode(name).decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
        if not name.isprintable()
        else name
    )
