"""The wall clock's synchronization, as the kernel states it."""

from __future__ import annotations

import struct

import pytest

from runtime.machine.wall_clock import clock_synchronised, synchronised


def timex(status: int) -> bytes:
    """Pack a struct timex: modes, offset, freq, maxerror, esterror, status, constant, precision."""
    return struct.pack("@Illlli2x2l", 0, 1, 2, 3, 4, status, 5, 6).ljust(512, b"\xff")


@pytest.mark.parametrize(
    ("state", "status", "expected"),
    [
        (0, 0x2001, True),  # TIME_OK; PLL and nanoseconds, as a time service leaves them
        (1, 0x0001, True),  # a leap second is due
        (5, 0x0040, False),  # as after boot
        (0, 0x0040, False),
        (5, 0x2001, False),  # TIME_ERROR of a lost reference
        (-1, 0, None),  # not permitted
    ],
)
def test_the_kernels_answer_is_interpreted(state: int, status: int, expected: bool | None) -> None:
    assert synchronised(state, timex(status)) is expected


def test_this_machine_gives_an_answer() -> None:
    assert clock_synchronised() in (True, False, None)
