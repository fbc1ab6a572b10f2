"""The times at which encoding is due: frames every ``frame_hop_s``, sound every ``audio_stride_s``.

Sound is encoded once more at its end. Of a medium of d seconds ``ceil(d / frame_hop_s)`` frames and
``ceil(d / audio_stride_s)`` windows of sound are encoded, each once.
"""

from __future__ import annotations

from dataclasses import dataclass

from vaemotion.contract.windows import EPSILON_S, WindowConfig


@dataclass(frozen=True)
class Due:
    """Encodings due at a tick.

    ``frame``: the grid point to encode the newest frame for, or None. ``sound``: encode the newest window.
    """

    frame: int | None
    sound: bool


class Schedule:
    """The ticks of one stream, in order."""

    def __init__(self, windows: WindowConfig, *, has_frames: bool, has_sound: bool) -> None:
        self._hop_s, self._stride_s = windows.frame_hop_s, windows.audio_stride_s
        self._frame: int | None = 0 if has_frames else None  # next grid point; None: no more frames
        self._sound: int | None = 1 if has_sound else None  # the window that ends at this stride

    def next_s(self) -> float | None:
        """Return the time of the next tick, None when both streams have ended."""
        ticks_s = [] if self._frame is None else [self._frame * self._hop_s]
        ticks_s += [] if self._sound is None else [self._sound * self._stride_s]
        return min(ticks_s, default=None)

    def due(self, now_s: float, frames_end_s: float | None, sound_end_s: float | None) -> Due:
        """Return what is due at ``now_s`` and mark it as done.

        ``frames_end_s`` and ``sound_end_s`` are None while that stream goes on.
        """
        frame, sound = None, False
        if self._frame is not None and self._frame * self._hop_s <= now_s + EPSILON_S:
            if frames_end_s is None or self._frame * self._hop_s < frames_end_s - EPSILON_S:
                frame, self._frame = self._frame, self._frame + 1
            else:
                self._frame = None
        if self._sound is not None and self._sound * self._stride_s <= now_s + EPSILON_S:
            if sound_end_s is None or self._sound * self._stride_s <= sound_end_s + EPSILON_S:
                sound, self._sound = True, self._sound + 1
            else:  # the rest behind the last stride is encoded once, too
                sound, self._sound = (self._sound - 1) * self._stride_s < sound_end_s - EPSILON_S, None
        return Due(frame, sound)

    def skip_to(self, now_s: float) -> int:
        """Drop ticks so far back that newer ones are due already; return the number dropped."""
        before = (self._frame or 0) + (self._sound or 0)
        if self._frame is not None:
            self._frame = max(self._frame, int((now_s + EPSILON_S) / self._hop_s))
        if self._sound is not None:
            self._sound = max(self._sound, int((now_s + EPSILON_S) / self._stride_s))
        return (self._frame or 0) + (self._sound or 0) - before
