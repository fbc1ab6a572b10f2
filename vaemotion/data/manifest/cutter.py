"""Cuts of media without another generation of loss: packets are copied, not encoded again.

In: a medium and a part of it in seconds. Out: a file of its own in memory, with the part's times in it. It
begins at a keyframe before the part, early enough that a decoder is exact where the part begins.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
from av.error import FFmpegError

from vaemotion.contract.media.files import MediaError, MediaFile, ffmpeg_name
from vaemotion.contract.media.medium import PREROLL_S, Medium

# Read behind the part, so that filters and reordered pictures at its end have what follows.
_BEHIND_S = 0.5
# Container by a word of its name: FFmpeg's muxer and the file's suffix. Both keep an exact time per packet.
_CONTAINERS = {"mov": ("mp4", "mp4"), "matroska": ("matroska", "mkv")}
# Ticks a second of MP4's edit lists, a multiple of the usual rates; their default is milliseconds.
_MOVIE_TIMESCALE = 14_112_000


@dataclass(frozen=True)
class Cut:
    """A medium's bytes, the suffix of its name without a dot, and the part in seconds from its start."""

    data: bytes
    suffix: str
    t0_s: float
    t1_s: float


def cut(file: MediaFile, t0_s: float, t1_s: float) -> Cut | None:
    """Copy the packets of a part; None for a container that cannot be cut exactly.

    Pictures and sound between ``t0_s`` and ``t1_s`` of the cut decode as those of the original do. Raises
    MediaError for a medium that cannot be read.
    """
    medium = Medium(file)
    try:
        with av.open(ffmpeg_name(file), metadata_errors="replace") as source:
            kind = next((kind for word, kind in _CONTAINERS.items() if word in source.format.name), None)
            if kind is None or not medium.has_pictures or not medium.streams:
                return None
            data, shift_s = _copy(source, medium, kind[0], t0_s, t1_s)
    except (FFmpegError, ValueError) as error:
        raise MediaError(f"{file} cannot be cut: {error}") from error
    moved_s = shift_s + _origin_s(data) - medium.origin_s
    return Cut(data, kind[1], t0_s - moved_s, t1_s - moved_s)


def _copy(source: Any, medium: Medium, muxer: str, t0_s: float, t1_s: float) -> tuple[bytes, int]:
    """Copy packets, and return the file with the whole seconds by which its stamps are earlier."""
    streams = [source.streams[index] for index in medium.streams]
    from_s, to_s = medium.origin_s + t0_s - PREROLL_S, medium.origin_s + t1_s + _BEHIND_S
    if from_s > medium.origin_s:
        source.seek(int(from_s / streams[0].time_base), stream=streams[0])
    packets = list(_packets(source, streams, to_s))
    # Whole seconds: a whole number of ticks of every time base that the two containers have.
    shift_s = math.floor(min((float(packet.dts * packet.time_base) for packet in packets), default=0.0))
    written = io.BytesIO()
    # bitexact: no random identifiers and no library's name, so that equal parts have equal bytes.
    options = {"fflags": "+bitexact"}
    if muxer == "mp4":
        options["movie_timescale"] = str(_MOVIE_TIMESCALE)
    with av.open(written, "w", format=muxer, options=options) as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in streams}
        for packet in packets:
            ticks = round(shift_s / packet.time_base)
            packet.dts, packet.pts = packet.dts - ticks, packet.pts - ticks
            packet.stream = copies[packet.stream.index]
            target.mux(packet)
    return written.getvalue(), shift_s


def _packets(source: Any, streams: list[Any], to_s: float) -> Iterator[Any]:
    """Yield the packets from here on that are decoded before ``to_s``, all with both stamps."""
    ended: set[int] = set()
    newest: dict[int, int] = {}
    for packet in source.demux(streams):
        if not _complete(packet, newest):
            continue
        if float(packet.dts * packet.time_base) < to_s:
            yield packet
        else:
            ended.add(packet.stream.index)
            if len(ended) == len(streams):
                return


def _complete(packet: Any, newest: dict[int, int]) -> bool:
    """Fill in the stamps that a packet lacks; False for one that cannot be copied.

    Behind a seek, Matroska's first packets have no decoding time; none may be behind that of the next ones.
    ``newest``: decoding time by stream.
    """
    if not packet.size or (packet.pts is None and packet.dts is None):
        return False
    index: int = packet.stream.index
    pts: int = packet.dts if packet.pts is None else packet.pts
    dts: int = newest.get(index, pts) if packet.dts is None else packet.dts
    dts = newest[index] = max(dts, newest.get(index, dts))
    packet.pts, packet.dts = pts, dts
    return pts >= dts


def _origin_s(data: bytes) -> float:
    with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
        return (container.start_time or 0) / av.time_base
