"""Mutated media files, read by the device and by the loader, which may give values or a MediaError."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.messages import Frame
from runtime.sources.file import FileSource
from vaemotion.contract.media.files import MediaError
from vaemotion.data.manifest.loader import Media, load_clip

HEADER_BYTES = 1024
BLOCK_BYTES = 4096
# Lengths, counts and times that programs compute with.
NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFE,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
)

Mutation = Callable[[bytearray, random.Random], None]


@dataclass(frozen=True)
class Mutant:
    """A file to be made from another, the same for the same seed, and where to write it."""

    source: Path
    seed: str
    path: Path

    def write(self) -> None:
        """Write the mutated file."""
        rng, data = random.Random(self.seed), bytearray(self.source.read_bytes())
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(MUTATIONS)(data, rng)
        self.path.write_bytes(data)


def mutants(sources: list[Path], n: int, seed: int, folder: Path) -> list[Mutant]:
    """Describe ``n`` mutants, the sources in turn."""
    chosen = [sources[k % len(sources)] for k in range(n)]
    return [
        Mutant(source, f"{seed}-{k}", folder / f"{k:05}-{source.name}") for k, source in enumerate(chosen)
    ]


def read(mutant: Mutant) -> tuple[str, str]:
    """Read a mutant as device and loader, and return for each "values" or "refused". Removes the file.

    Any exception but MediaError goes on, and leaves the file.
    """
    mutant.write()
    device = _outcome(lambda: _as_device(mutant.path))
    loader = "refused"
    for kind in ("video", "audio", "image"):
        media = Media(**{kind: mutant.path.name})
        if _outcome(lambda media=media: load_clip(media, mutant.path.parent)) == "values":
            loader = "values"
    mutant.path.unlink()
    return device, loader


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except MediaError:
        return "refused"
    return "values"


def _as_device(path: Path) -> None:
    for event in FileSource(path).events():
        if isinstance(event, Frame):
            picture = event.picture()
            assert picture.ndim == 3, f"a picture of shape {picture.shape}"


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 16, 64))):
        _change(data, rng.randrange(len(data) or 1), rng)


def _flip_in_header(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 8))):
        _change(data, rng.randrange(min(HEADER_BYTES, len(data)) or 1), rng)


def _change(data: bytearray, at: int, rng: random.Random) -> None:
    if at < len(data):
        data[at] ^= rng.choice((1, 2, 4, 8, 16, 32, 64, 128, 255))


def _number(data: bytearray, rng: random.Random) -> None:
    """Overwrite a field: at any place of the header, or beside a four-letter name of a chunk or box."""
    if len(data) < 16:
        return
    at = rng.randrange(min(HEADER_BYTES, len(data) - 8))
    if rng.random() < 0.7:
        names = [k for k in range(4, len(data) - 12) if data[k : k + 4].isalpha()]
        at = rng.choice(names) + rng.choice((-4, 4, 8)) if names else at
    form = rng.choice((">I", "<I", ">H", "<H"))
    number = rng.choice(NUMBERS) if rng.random() < 0.8 else len(data) + rng.randrange(-16, 16)
    struct.pack_into(
        form, data, min(at, len(data) - 4), number & (0xFFFF if form.endswith("H") else 0xFFFFFFFF)
    )


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) or 1) :]


def _block(data: bytearray, rng: random.Random) -> slice:
    start = rng.randrange(len(data) or 1)
    return slice(start, min(len(data), start + rng.randrange(1, BLOCK_BYTES)))


def _swap(data: bytearray, rng: random.Random) -> None:
    one, other = sorted((_block(data, rng), _block(data, rng)), key=lambda block: block.start)
    n = min(one.stop - one.start, other.stop - other.start, other.start - one.start)
    first, second = slice(one.start, one.start + n), slice(other.start, other.start + n)
    data[first], data[second] = data[second], data[first]


def _remove(data: bytearray, rng: random.Random) -> None:
    del data[_block(data, rng)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    block = _block(data, rng)
    data[block.stop : block.stop] = data[block] * rng.choice((1, 1, 8))


def _fill(data: bytearray, rng: random.Random) -> None:
    block = _block(data, rng)
    data[block] = bytes([rng.choice((0, 0xFF, rng.randrange(256)))]) * (block.stop - block.start)


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _flip_in_header,
    _number,
    _number,
    _truncate,
    _swap,
    _remove,
    _repeat,
    _fill,
)
