"""Decoding of one stream: the right decoder, every frame that it can give, and each frame's best stamp."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
from av.error import FFmpegError, InvalidDataError

from vaemotion.contract.media.remarks import Remark, Remarks
from vaemotion.contract.media.timeline import PacketTimes

# FFmpeg's own decoders of VP8 and VP9 leave the alpha channel out, which libvpx reads.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Of damaged places in a row, after which a file is not read on.
MOST_DAMAGED_PLACES = 100
# Frames that a decoder may hold back: 16 of its own, and one in each of its threads.
MOST_DELAYED = 64


@dataclass
class BestStamp:
    """The better one of a frame's two stamps: its own, or that of the packet which it came from.

    Source: ``guess_correct_pts`` of FFmpeg's decode.c, which PyAV does not give. Where more of the frames'
    own stamps ran backward, those of the packets are taken.
    """

    _faulty_own: int = 0
    _faulty_packets: int = 0
    _own: int | None = None
    _packet: int | None = None

    def of(self, own: int | None, packet: int | None) -> int | None:
        """Return the stamp of the next frame, in units of its time base; None without any."""
        if packet is not None:
            self._faulty_packets += self._packet is not None and packet <= self._packet
            self._packet = packet
        elif own is not None:
            self._packet = own
        if own is not None:
            self._faulty_own += self._own is not None and own <= self._own
            self._own = own
        elif packet is not None:
            self._own = packet
        if own is not None and (packet is None or self._faulty_own <= self._faulty_packets):
            return own
        return packet


def open_decoder(stream: Any) -> Any:
    """Return the codec context that decodes a stream's packets, not opened yet."""
    other = _WITH_ALPHA.get(stream.codec_context.name)
    if other is not None and stream.metadata.get("alpha_mode") == "1" and other in av.codecs_available:
        return av.CodecContext.create(other, "r")  # pyright: ignore[reportArgumentType, reportCallIssue]
    context = stream.codec_context
    if stream.type == "audio":
        _forget_positions(context)
    else:
        context.thread_type = "AUTO"
    return context


def channels_of(stream: Any) -> int:
    """Return the number of channels of an audio stream."""
    return _kept_layout(stream.codec_context).nb_channels


# PyAV frees a layout that lists its channels one by one twice, which ends the process. A layout that is never
# freed by PyAV is freed once.
_kept: list[Any] = []


def _kept_layout(context: Any) -> Any:
    layout = context.layout
    if is_listed(layout):
        _kept.append(layout)
    return layout


def is_listed(layout: Any) -> bool:
    """Return True for a layout that lists its channels one by one, "8 channels (FL+FR+...)"."""
    try:
        return " channels (" in layout.name
    except (UnicodeDecodeError, RuntimeError):
        return True


def _forget_positions(context: Any) -> None:
    """Leave a listed layout's number of channels only; nothing here asks where a loudspeaker stands."""
    layout = _kept_layout(context)
    if is_listed(layout) and not context.is_open:
        context.layout = f"{layout.nb_channels} channels"


@dataclass
class Decoding:
    """Decoding of one stream of an open container.

    ``origin_s``: stamp at which the file starts. ``breaks``: correction of the packets' stamps, for which the
    packets of ``others`` are read, too. ``packets`` and ``damaged`` count what was read. ``stamps``: those of
    the packets whose frames have not come yet; the next frame has the first one, where each packet holds one.
    """

    container: Any
    stream: Any
    origin_s: float
    breaks: PacketTimes | None = None
    others: Sequence[Any] = ()
    packets: int = 0
    damaged: int = 0
    stamps: deque[int | None] = field(default_factory=lambda: deque[int | None](maxlen=MOST_DELAYED))
    _remarks: Remarks = field(default_factory=Remarks)

    @property
    def damaged_share(self) -> float:
        """Share of the packets that could not be decoded, in [0, 1]."""
        return self.damaged / max(1, self.packets)

    def frames(self) -> Iterator[Any]:
        """Yield the decoded frames in order, and remarks about breaks and damage."""
        context, time_s = open_decoder(self.stream), 0.0
        streams = [self.stream, *self.others] if self.breaks is not None else [self.stream]
        for packet in _packets(self.container, streams):
            if isinstance(packet, FFmpegError):
                yield from self._damage(time_s, "place", packet)
                continue
            moved_s = 0.0 if self.breaks is None else self.breaks.correct(packet)
            if packet.stream.index != self.stream.index:
                continue
            if packet.pts is not None:
                time_s = max(time_s, float(packet.pts * packet.time_base) - self.origin_s)
            if moved_s:
                text = "joined of several recordings: a break in their times is closed"
                yield from self._remarks.add(time_s, text)
            self.packets += 1
            self.stamps.append(packet.dts)
            try:
                yield from context.decode(packet)
            except FFmpegError as error:
                yield from self._damage(time_s, "packet", error)
        flush = av.Packet()
        flush.time_base = self.stream.time_base
        with contextlib.suppress(FFmpegError):
            yield from context.decode(flush)
        yield from self._remarks.rest()

    def _damage(self, time_s: float, what: str, error: FFmpegError) -> Iterator[Remark]:
        self.damaged += 1
        reason = error.strerror or type(error).__name__
        return self._remarks.add(time_s, f"damaged {self.stream.type} {what} left out: {reason}")


def _packets(container: Any, streams: list[Any]) -> Iterator[Any]:
    """Yield packets, and the error of each damaged place behind which the file can be read on."""
    failures = 0
    while failures < MOST_DAMAGED_PLACES:
        try:
            for packet in container.demux(streams):
                if packet.size:
                    failures = 0
                    yield packet
            return
        except IndexError:
            continue  # PyAV stumbles over a packet of a stream that began later, and is behind it now
        except FFmpegError as error:
            failures += 1
            yield error
            if not isinstance(error, InvalidDataError):
                return
