"""Last steps in the making of files that no ffmpeg command can do: joins, damage, matrices, curves."""

from __future__ import annotations

import base64
import shlex
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.zoo.card import HEIGHT_PX, WIDTH_PX, card
from tests.zoo.workshop import run_ffmpeg

Edit = Callable[[Path, Path], None]

# tkhd's a, b, c, d for each number of quarter turns clockwise: (x, y) becomes (a x + c y, b x + d y).
_TURNS = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))
_BT709_TO_BT2020 = np.array(  # ITU-R BT.2087-0
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
_WHITE_CD_M2 = 203.0  # ITU-R BT.2408-7: where HDR puts the white of SDR
_DIVX_PACKED = b"\x00\x00\x01\xb2DivX503b1393p"
_NOT_CODED = b"\x00\x00\x01\xb6\x50\x20\x7f"  # a P-VOP of MPEG-4 that says "not coded"


def joined(first: str, second: str) -> Edit:
    """Return the step that writes one file behind the other, byte by byte."""

    def join(path: Path, between: Path) -> None:
        path.write_bytes((between / first).read_bytes() + (between / second).read_bytes())

    return join


def concatenated(first: str, second: str) -> Edit:
    """Return the step that lays the packets of one file behind those of the other."""

    def concatenate(path: Path, between: Path) -> None:
        listed = between / "list.txt"
        listed.write_text("".join(f"file 'file:{between / name}'\n" for name in (first, second)))
        run_ffmpeg(["-f", "concat", "-safe", "0", "-i", str(listed), "-c", "copy", str(path)])

    return concatenate


def turned(turns: int, mirrored: bool) -> Edit:
    """Return the step that writes a display matrix: quarter turns clockwise, then a mirror image."""
    a, b, c, d = _TURNS[turns]
    if mirrored:
        a, c = -a, -c

    def turn(path: Path, _between: Path) -> None:
        data = bytearray(path.read_bytes())
        matrix = data.index(b"tkhd") + 4 + 40
        corners = [(a * x + c * y, b * x + d * y) for x in (0, WIDTH_PX) for y in (0, HEIGHT_PX)]
        left, top = (-min(values) for values in zip(*corners, strict=True))
        values = [v << 16 for v in (a, b, 0, c, d, 0, left, top)]
        struct.pack_into(">8iI", data, matrix, *values, 1 << 30)
        path.write_bytes(data)

    return turn


def truncated(kept: float) -> Edit:
    """Return the step that keeps the first part of a file."""

    def truncate(path: Path, _between: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)])

    return truncate


def start_missing(lost: float) -> Edit:
    """Return the step that drops the first part of a transport stream, in whole packets."""

    def drop(path: Path, _between: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[int(len(data) * lost) // 188 * 188 :])

    return drop


def _garbage(n: int) -> bytes:
    return np.random.default_rng(7).integers(0, 256, n, np.uint8).tobytes()


def garbage_in_front(n: int) -> Edit:
    """Return the step that puts ``n`` random bytes in front."""

    def prepend(path: Path, _between: Path) -> None:
        path.write_bytes(_garbage(n) + path.read_bytes())

    return prepend


def garbage_inside(start: float, end: float, *, zeros: bool = False) -> Edit:
    """Return the step that overwrites a part of a file."""

    def overwrite(path: Path, _between: Path) -> None:
        data = bytearray(path.read_bytes())
        part = slice(int(len(data) * start), int(len(data) * end))
        n = part.stop - part.start
        data[part] = bytes(n) if zeros else _garbage(n)
        path.write_bytes(data)

    return overwrite


def killed_avi(path: Path, _between: Path) -> None:
    """Write an AVI as its recorder leaves it when it is killed: no index, lengths of 0."""
    data = bytearray(path.read_bytes())
    del data[data.rindex(b"idx1") :]
    data[4:8] = bytes(4)
    movi = data.index(b"movi")
    data[movi - 4 : movi] = bytes(4)
    frames = data.index(b"avih") + 8 + 16
    data[frames : frames + 4] = bytes(4)
    path.write_bytes(data)


def subtitled(path: Path, between: Path) -> None:
    """Write a film whose subtitles last longer than its pictures and sound."""
    subtitles = between / "long.srt"
    subtitles.write_text("1\n00:00:00,500 --> 00:00:20,000\nThe end comes later.\n")
    cards, tones = between / "cards.mkv", "sine=f=443:d=2:r=48000"
    _film(cards, [card(k) for k in range(50)], 25)
    run_ffmpeg(
        [
            *_i(cards),
            "-f",
            "lavfi",
            "-i",
            tones,
            *_i(subtitles),
            *shlex.split("-c:v libx264 -pix_fmt yuv420p -c:a aac -c:s srt"),
            str(path),
        ]
    )


def ogg_cover(path: Path, between: Path) -> None:
    """Write an Ogg song with a cover in its comments (METADATA_BLOCK_PICTURE)."""
    cover = (between / "cover.jpg").read_bytes()
    mime = b"image/jpeg"
    block = (
        struct.pack(">II", 3, len(mime))
        + mime
        + struct.pack(">IIIIII", 0, WIDTH_PX, HEIGHT_PX, 24, 0, len(cover))
        + cover
    )
    text = base64.b64encode(block).decode()
    run_ffmpeg(
        [
            *_i(between / "song.ogg"),
            "-c",
            "copy",
            "-metadata:s:a:0",
            f"METADATA_BLOCK_PICTURE={text}",
            str(path),
        ]
    )


def packed_b_frames(path: Path, _between: Path) -> None:
    """Write MPEG-4 as DivX 5 packs it into AVI: P and B in one chunk, then a chunk that codes nothing."""
    import av

    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"bf": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.codec_context.max_b_frames, stream.codec_context.bit_rate = 1, 4_000_000
        frames = [av.VideoFrame.from_ndarray(card(k), format="rgb24") for k in range(25)]
        coded = [bytes(packet) for frame in [*frames, None] for packet in stream.encode(frame)]
        chunks = [_with_user_data(coded[0])]
        rest = coded[1:]
        while rest:
            if len(rest) > 1 and _is_b(rest[1]):
                chunks += [rest[0] + rest[1], _NOT_CODED]
                rest = rest[2:]
            else:
                chunks.append(rest.pop(0))
        for k, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, k, k, k == 0
            packet.time_base = stream.time_base = stream.codec_context.time_base
            container.mux(packet)


def _is_b(packet: bytes) -> bool:
    return packet[packet.index(b"\x00\x00\x01\xb6") + 4] >> 6 == 2


def _with_user_data(packet: bytes) -> bytes:
    start = packet.find(b"\x00\x00\x01\xb2")
    frame = packet.index(b"\x00\x00\x01\xb6")
    return packet[: start if start >= 0 else frame] + _DIVX_PACKED + packet[frame:]


def hdr(curve: str, options: str) -> Edit:
    """Return the step that writes the cards by PQ or HLG in BT.2020, the white of SDR at 203 cd/m2."""

    def write(path: Path, between: Path) -> None:
        raw = between / "hdr.raw"
        with raw.open("wb") as file:
            for k in range(10):
                light = (card(k) / 255.0) ** 2.4 * _WHITE_CD_M2 @ _BT709_TO_BT2020.T  # (H, W, 3) cd/m2
                coded = pq(light) if curve == "pq" else hlg(light)
                file.write(np.round(coded * 65535).astype("<u2").tobytes())
        cards = f"-f rawvideo -pix_fmt rgb48le -s {WIDTH_PX}x{HEIGHT_PX} -r 10 -i {raw}"
        scale = "-vf scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le"
        run_ffmpeg([*shlex.split(f"{cards} {scale} {options}"), str(path)])

    return write


def pq(light_cd_m2: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Code light by SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.clip(light_cd_m2 / 10_000, 0, 1) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg(light_cd_m2: npt.NDArray[np.float64], peak_cd_m2: float = 1000.0) -> npt.NDArray[np.float64]:
    """Code the light of a display of 1000 cd/m2 by ITU-R BT.2100's HLG, system gamma 1.2. light: (..., 3)."""
    shown = np.clip(light_cd_m2 / peak_cd_m2, 0, 1)
    luminance = shown @ np.array([0.2627, 0.6780, 0.0593])
    scene = shown * np.maximum(luminance, 1e-6)[..., None] ** ((1 - 1.2) / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-6)) + c)


def transparent_gif(path: Path, _between: Path) -> None:
    """Write a GIF with a transparent foot."""
    from PIL import Image

    cards = [Image.fromarray(card(k, alpha=True)) for k in range(10)]
    cards[0].save(path, save_all=True, append_images=cards[1:], duration=100, loop=0, disposal=2)


def uneven_gif(path: Path, _between: Path) -> None:
    """Write a GIF whose frames last unequally."""
    from PIL import Image

    cards = [Image.fromarray(card(k)) for k in range(8)]
    cards[0].save(
        path, save_all=True, append_images=cards[1:], duration=[20, 500, 40, 200, 100, 70, 30, 300], loop=0
    )


def animated_webp(path: Path, _between: Path) -> None:
    """Write an animated WebP, 10 frames a second."""
    from PIL import Image

    cards = [Image.fromarray(card(k)) for k in range(20)]
    cards[0].save(path, save_all=True, append_images=cards[1:], duration=100, loop=0, quality=95)


def transparent_webp(path: Path, _between: Path) -> None:
    """Write an animated WebP with a transparent foot."""
    from PIL import Image

    cards = [Image.fromarray(card(k, alpha=True)) for k in range(10)]
    cards[0].save(path, save_all=True, append_images=cards[1:], duration=100, loop=0, lossless=True)


def _i(path: Path) -> list[str]:
    return ["-i", f"file:{path}"]


def _film(path: Path, cards: list[npt.NDArray[np.uint8]], rate: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "bgr0"
        for picture in cards:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
