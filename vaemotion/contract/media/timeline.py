"""Times of a medium: from its start, ascending, whatever its packets are stamped with.

``PacketTimes`` closes the breaks between joined recordings, as FFmpeg's own command does: all streams of a
container that allows breaks (MPEG-TS and its kin) move by the same time. ``FrameTimes`` gives each decoded
frame of one stream its time: decoded order is display order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

# FFmpeg's dts_delta_threshold: in a container that allows breaks, a larger jump is one.
BREAK_S = 10.0
# Packets of one stream may step back by less without a break.
STEP_BACK_S = 0.1
# Frames may be stamped out of order by less; a frame that is further back begins a new count.
DISORDER_S = 0.5
# Elsewhere a jump ahead is a picture that stands still, unless it goes this far behind the declared end, ...
BEHIND_END_S = 60.0
# ... or is as long as FFmpeg's dts_error_threshold where no end is declared.
STILL_S = 30 * 3600.0


@dataclass
class PacketTimes:
    """Correction of the stamps of packets in a container that allows breaks, for all of its streams at once.

    Source: ``ts_discontinuity_detect`` of FFmpeg's ffmpeg_demux.c. Unlike there, a stream that pauses while
    another one goes on does not break.
    """

    _shift_s: float = 0.0
    # By stream: stamp of the newest packet, and the stamp that is expected next; both are corrected.
    _newest_s: dict[int, float] = field(default_factory=dict[int, float])
    _expected_s: dict[int, float] = field(default_factory=dict[int, float])

    def correct(self, packet: Any) -> float:
        """Move an ``av.Packet``'s stamps, and return the seconds by which a break moved them now, else 0."""
        if packet.dts is None and packet.pts is None:
            return 0.0
        base_s, index = float(packet.time_base), int(packet.stream_index)
        stamp: int = packet.pts if packet.dts is None else packet.dts
        time_s, moved_s = stamp * base_s + self._shift_s, 0.0
        if self._newest_s:
            expected_s = self._expected_s.get(index, max(self._newest_s.values()))
            ahead_s = time_s - max(expected_s, *self._newest_s.values())
            back = time_s < self._newest_s.get(index, time_s - BREAK_S) - STEP_BACK_S
            if ahead_s > BREAK_S or back or time_s < expected_s - BREAK_S:
                moved_s = expected_s - time_s
                self._shift_s += moved_s
                time_s = expected_s
        self._newest_s[index] = time_s
        self._expected_s[index] = time_s + (packet.duration or 0) * base_s
        shift = round(self._shift_s / base_s)
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift
        return moved_s


JUMP = "its stamps jump, which is closed"
DISORDER = "its frames are stamped out of order: they are shown in decoded order"


class Oddity(NamedTuple):
    """A stamp that was not taken as it is: ``kind`` is JUMP or DISORDER, ``details`` differ each time."""

    kind: str
    details: str = ""


@dataclass
class FrameTimes:
    """Times of one stream's frames. ``declared_end_s``: end that the container declares, None if unknown."""

    declared_end_s: float | None = None
    # End of the newest frame, None before the first.
    end_s: float | None = None
    _newest_s: float = 0.0
    _shift_s: float = 0.0

    def place(self, stamped_s: float | None, duration_s: float) -> tuple[float, Oddity | None]:
        """Return the time of the next frame, and the oddity where its stamp was not taken as it is.

        ``stamped_s``: its stamp from the file's start, None without one.
        """
        time_s, oddity = self._time(stamped_s)
        self._newest_s = time_s
        self.end_s = time_s + duration_s
        return time_s, oddity

    def _time(self, stamped_s: float | None) -> tuple[float, Oddity | None]:
        expected_s = max(0.0, self._newest_s if self.end_s is None else self.end_s)
        if stamped_s is None:
            return expected_s, None
        time_s = stamped_s + self._shift_s
        if self._too_far(time_s, expected_s) or (
            self.end_s is not None and time_s < self._newest_s - DISORDER_S
        ):
            self._shift_s += expected_s - time_s
            return expected_s, Oddity(JUMP, f" ({time_s - expected_s:+.1f} s)")
        if self.end_s is not None and time_s <= self._newest_s:
            return expected_s, Oddity(DISORDER)
        return time_s, None

    def _too_far(self, time_s: float, expected_s: float) -> bool:
        if self.declared_end_s is None:
            return time_s > expected_s + STILL_S
        return time_s > max(expected_s, self.declared_end_s) + BEHIND_END_S
