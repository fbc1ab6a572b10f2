"""Remarks about a medium, said once and then counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

# Of media time, before the same remark is made again.
REPEAT_S = 10.0


@dataclass(frozen=True)
class Remark:
    """A sentence about the medium at a time, in seconds from its start."""

    time_s: float
    text: str


@dataclass
class _Counted:
    said_s: float
    unsaid: int = 0
    newest_s: float = 0.0


@dataclass
class Remarks:
    """Remarks of one stream: of each kind at most one in ``REPEAT_S``, with the number of those left out."""

    _kinds: dict[str, _Counted] = field(default_factory=dict[str, _Counted])

    def add(self, time_s: float, kind: str, details: str = "") -> Iterator[Remark]:
        """Yield the remark ``kind`` + ``details``, or count it where its kind was said a short time ago."""
        before = self._kinds.get(kind)
        if before is not None and time_s - before.said_s < REPEAT_S:
            before.unsaid, before.newest_s = before.unsaid + 1, time_s
            return
        more = f" ({before.unsaid} more before it)" if before is not None and before.unsaid else ""
        self._kinds[kind] = _Counted(time_s)
        yield Remark(time_s, kind + details + more)

    def rest(self) -> Iterator[Remark]:
        """Yield the counts that have not been said, at the end of the stream."""
        for kind, counted in self._kinds.items():
            if counted.unsaid:
                yield Remark(counted.newest_s, f"{kind} ({counted.unsaid} more)")
        self._kinds.clear()
