"""The interface between sources and the session: a feed delivers what arrived until a given time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from runtime.messages import Frame, Notice, Sound
from runtime.stage_times import StageTimes

Event = Frame | Sound | Notice


def held_bytes(event: object) -> int:
    """Return the bytes of memory that an event holds; little things count as none."""
    if isinstance(event, Frame):
        return event.size_bytes
    return event.samples.nbytes if isinstance(event, Sound) else 0


@dataclass
class Arrived:
    """Input that arrived since the tick before: the newest frame and all of the sound.

    ``frames_end_s``, ``sound_end_s``: end of a file's stream, None while it goes on; ``over``: both have
    ended. ``lost``: live devices whose earlier evidence no longer counts.
    """

    frame: Frame | None = None
    sound: list[Sound] = field(default_factory=list[Sound])
    notices: list[Notice] = field(default_factory=list[Notice])
    frames_end_s: float | None = None
    sound_end_s: float | None = None
    over: bool = False
    lost: set[str] = field(default_factory=set[str])

    def now_s(self, tick_s: float) -> float:
        """Return ``tick_s``, or the medium's end where that lies before it."""
        ends_s = [end for end in (self.frames_end_s, self.sound_end_s) if end is not None]
        return min(tick_s, max(ends_s)) if self.over and ends_s else tick_s

    def joined_sound(self) -> Sound | None:
        """Return all of the sound as one block, so that log-mel is computed in one batch."""
        if not self.sound:
            return None
        samples = np.concatenate([sound.samples for sound in self.sound])
        return Sound(self.sound[-1].time_s, samples, sum(sound.broken for sound in self.sound))

    def add(self, event: Event) -> None:
        """Add one event; a frame replaces the frame before it."""
        if isinstance(event, Frame):
            self.frame = event
        elif isinstance(event, Sound):
            self.sound.append(event)
        else:
            self.notices.append(event)


class Feed(Protocol):
    """Input of a session. ``dropped`` counts what never reached it; ``times`` measures decoding."""

    times: StageTimes

    @property
    def dropped(self) -> dict[str, int]: ...
    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        """Wait until ``time_s``, or until ``stop`` is set, and return what arrived since the last call."""
        ...

    def close(self) -> None: ...
