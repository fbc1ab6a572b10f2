"""HEIC as telephones write it: tiles of HEVC below a grid, turned and mirrored, assembled by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.zoo.card import card
from tests.zoo.workshop import run_ffmpeg


def heic_grid(number: int, turns: int, mirrored: bool) -> Callable[[Path, Path], None]:
    """Return the step that writes 192 × 128 as 3 × 2 tiles of HEVC, turned by irot."""

    def write(path: Path, between: Path) -> None:
        whole = card(number, 192, 128)
        tiles, config = [], b""
        for row in range(2):
            for column in range(3):
                raw, coded = between / "tile.raw", between / "tile.mp4"
                tile = whole[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
                raw.write_bytes(np.ascontiguousarray(tile).tobytes())
                x265 = (
                    "-c:v libx265 -preset ultrafast -crf 4 -pix_fmt yuv420p -x265-params log-level=0:info=0"
                )
                cards = f"-f rawvideo -pix_fmt rgb24 -s 64x64 -i {raw}"
                run_ffmpeg(f"{cards} {x265} -tag:v hvc1 {coded}".split())
                data = coded.read_bytes()
                at = data.index(b"hvcC")
                config = data[at - 4 : at - 4 + struct.unpack_from(">I", data, at - 4)[0]]
                at = data.index(b"mdat")
                tiles.append(data[at + 4 : at - 4 + struct.unpack_from(">I", data, at - 4)[0]])
        path.write_bytes(_heic(tiles, config, (3, 2), 64, (192, 128), turns, mirrored))

    return write


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def _full(kind: bytes, version: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24), *parts)


def _heic(
    tiles: list[bytes],
    config: bytes,
    grid: tuple[int, int],
    tile_px: int,
    size_px: tuple[int, int],
    turns: int,
    mirrored: bool,
) -> bytes:
    """Assemble HEIF's boxes (ISO/IEC 23008-12): the tiles as items 1 to n, the grid as item n + 1."""
    n = len(tiles)
    entries = [_full(b"infe", 2, struct.pack(">HH", k, 0), b"hvc1\0") for k in range(1, n + 1)]
    entries.append(_full(b"infe", 2, struct.pack(">HH", n + 1, 0), b"grid\0"))
    derived = struct.pack(">BBBBHH", 0, 0, grid[1] - 1, grid[0] - 1, *size_px)
    # Properties: 1 the decoder's configuration, 2 a tile's size, 3 the whole's, 4 the turn
    # (counterclockwise), 5 the exchange of left and right.
    properties = _box(
        b"ipco",
        config,
        _full(b"ispe", 0, struct.pack(">II", tile_px, tile_px)),
        _full(b"ispe", 0, struct.pack(">II", *size_px)),
        _box(b"irot", bytes([(4 - turns) % 4])),
        _box(b"imir", b"\1"),
    )
    of_tiles = [struct.pack(">HBBB", k, 2, 0x81, 0x02) for k in range(1, n + 1)]
    of_grid = struct.pack(">HBBB", n + 1, 2 + mirrored, 0x03, 0x84) + b"\x85" * mirrored
    associations = _full(b"ipma", 0, struct.pack(">I", n + 1), *of_tiles, of_grid)
    lengths = [*(len(tile) for tile in tiles), len(derived)]

    def meta(start: int) -> bytes:
        located = b""
        for k, length in enumerate(lengths, start=1):
            located += struct.pack(">HHHII", k, 0, 1, start, length)
            start += length
        return _full(
            b"meta",
            0,
            _full(b"hdlr", 0, struct.pack(">I", 0), b"pict", bytes(12), b"\0"),
            _full(b"pitm", 0, struct.pack(">H", n + 1)),
            _full(b"iinf", 0, struct.pack(">H", n + 1), *entries),
            _full(b"iref", 0, _box(b"dimg", struct.pack(f">HH{n}H", n + 1, n, *range(1, n + 1)))),
            _box(b"iprp", properties, associations),
            _full(b"iloc", 0, struct.pack(">BBH", 0x44, 0, n + 1), located),
        )

    head = _box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + _box(b"mdat", *tiles, derived)
