"""Memory that is freed goes back to the system at once, also where it held a picture."""

from __future__ import annotations

import contextlib
import ctypes

# glibc raises its own limit to 32 MB when the first large block is freed, and then keeps such blocks.
LARGE_BYTES = 4 << 20
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def give_back_freed() -> None:
    """Give memory that was freed back to the system, as far as the allocator can; nothing on another libc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Make this process's allocator give large blocks back when they are freed; nothing on another libc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
