"""State of the wall clock's synchronization, on which opening hours and a log's time stamps depend.

In: the kernel's flag, which every time service sets through adjtimex(2). Out: True, False, or None where
it is unknown. The runtime times nothing by the wall clock.
"""

from __future__ import annotations

import ctypes
import struct

_TIMEX_BYTES = 512  # more than struct timex has anywhere
_STATUS_OFFSET = 5 * struct.calcsize("l")  # behind modes (padded), offset, freq, maxerror and esterror
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5  # adjtimex's return value for a clock that is not synchronized


def clock_synchronised() -> bool | None:
    """Ask the kernel; return None where that is not possible, as in a container that forbids it."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: nothing is changed
    try:
        state = ctypes.CDLL(None).adjtimex(timex)
    except (OSError, AttributeError):  # another C library
        return None
    return synchronised(state, timex.raw)


def synchronised(state: int, timex: bytes) -> bool | None:
    """Interpret adjtimex's return value and its struct timex."""
    if state < 0:
        return None
    (status,) = struct.unpack_from("i", timex, _STATUS_OFFSET)
    return state != _TIME_ERROR and not status & _STA_UNSYNC
