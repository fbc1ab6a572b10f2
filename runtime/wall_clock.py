"""Whether the wall clock is synchronised. Nothing is timed by it, but opening hours and the stamps of a log are.

In: the kernel's own word, adjtimex(2), which every time service sets. Out: True, False, or None where nobody knows.
"""

from __future__ import annotations

import ctypes
import struct

_TIMEX_BYTES = 512  # more than struct timex has anywhere
_STATUS_OFFSET = 5 * struct.calcsize("l")  # behind modes (with padding), offset, freq, maxerror and esterror
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5  # adjtimex's return value: the clock is not to be trusted


def clock_synchronised() -> bool | None:
    """What the kernel says now. None where it may not be asked, as in a container that forbids it."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: nothing is changed
    try:
        state = ctypes.CDLL(None).adjtimex(timex)
    except (OSError, AttributeError):  # another C library
        return None
    return synchronised(state, timex.raw)


def synchronised(state: int, timex: bytes) -> bool | None:
    """From adjtimex's return value and its struct timex."""
    if state < 0:
        return None
    (status,) = struct.unpack_from("i", timex, _STATUS_OFFSET)
    return state != _TIME_ERROR and not status & _STA_UNSYNC
