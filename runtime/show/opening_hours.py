"""Opening hours of a venue, parsed from text such as "tue-sun 10:00-18:00"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from vaemotion.contract.errors import UsageError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"(?:([a-z,-]+) +)?(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True)
class OpeningHours:
    """Daily opening hours in local time.

    ``days``: the days on which they begin, 0 (Monday) to 6. They last from ``opens_min`` to before
    ``closes_min``, in minutes since that day's midnight; over midnight ``closes_min`` is above 1440.
    """

    days: frozenset[int]
    opens_min: int
    closes_min: int

    def is_open(self, local_time: datetime) -> bool:
        """Return True when the venue is open at ``local_time``."""
        minute = local_time.hour * 60 + local_time.minute
        today, yesterday = local_time.weekday(), (local_time.weekday() - 1) % 7
        return (today in self.days and self.opens_min <= minute < self.closes_min) or (
            yesterday in self.days and minute + 1440 < self.closes_min
        )


def parse_opening_hours(text: str) -> OpeningHours:
    """Parse "10:00-18:00", "tue-sun 10:00-18:00" or "fri,sat 20:00-02:00". Raises UsageError."""
    parts = _HOURS.fullmatch(text.strip().lower())
    if parts is None:
        raise UsageError(
            f'invalid opening hours {text!r}; write them as "10:00-18:00" or "tue-sun 10:00-18:00"'
        )
    opens_min, closes_min = (int(parts[i]) * 60 + int(parts[i + 1]) for i in (2, 4))
    if max(opens_min, closes_min) > 1440 or int(parts[3]) > 59 or int(parts[5]) > 59:
        raise UsageError(f"invalid opening hours {text!r}: times go from 00:00 to 24:00")
    if opens_min == closes_min:
        raise UsageError(
            f"invalid opening hours {text!r}: opening equals closing; a whole day is 00:00-24:00"
        )
    closes_min += 1440 * (closes_min < opens_min)
    return OpeningHours(_days(parts[1] or "mon-sun", text), opens_min, closes_min)


def _days(named: str, text: str) -> frozenset[int]:
    """Parse "tue-sun" or "fri,sat" to day numbers. ``text``: the opening hours, for errors."""
    days: set[int] = set()
    for part in named.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise UsageError(
                f"invalid opening hours {text!r}: {part!r} is not a day or a range of days; "
                f"days are {', '.join(DAYS)}"
            )
        start = DAYS.index(first)
        length = (DAYS.index(last or first) - start) % 7 + 1  # "sat-mon" goes over the week's end
        days |= {(start + i) % 7 for i in range(length)}
    return frozenset(days)
