"""When something is due: pictures on the grid of ``frame_hop_s``, sound every ``audio_stride_s`` and once more at its end.

Of a medium of d seconds ``ceil(d / frame_hop_s)`` pictures and ``ceil(d / audio_stride_s)`` windows of sound are encoded,
each once.
"""

from __future__ import annotations

from dataclasses import dataclass

from vaemotion.contract.windows import WindowConfig

_EPSILON_S = 1e-6


@dataclass(frozen=True)
class Due:
    """``picture``: the grid point to encode the newest picture for, or None. ``sound``: encode the newest window."""

    picture: int | None
    sound: bool


class Agenda:
    """The next moments of one stream."""

    def __init__(self, windows: WindowConfig, *, has_frames: bool, has_sound: bool) -> None:
        self._hop_s, self._stride_s = windows.frame_hop_s, windows.audio_stride_s
        self._picture: int | None = 0 if has_frames else None  # next grid point; None: the pictures are over
        self._sound: int | None = 1 if has_sound else None  # the window that ends at this stride

    def next_s(self) -> float | None:
        """The next moment, None when everything is over."""
        moments = [] if self._picture is None else [self._picture * self._hop_s]
        moments += [] if self._sound is None else [self._sound * self._stride_s]
        return min(moments, default=None)

    def due(self, now_s: float, frames_end_s: float | None, sound_end_s: float | None) -> Due:
        """What is due at ``now_s``, which is then done. The ends are None while a stream goes on."""
        picture, sound = None, False
        if self._picture is not None and self._picture * self._hop_s <= now_s + _EPSILON_S:
            if frames_end_s is None or self._picture * self._hop_s < frames_end_s - _EPSILON_S:
                picture, self._picture = self._picture, self._picture + 1
            else:
                self._picture = None
        if self._sound is not None and self._sound * self._stride_s <= now_s + _EPSILON_S:
            if sound_end_s is None or self._sound * self._stride_s <= sound_end_s + _EPSILON_S:
                sound, self._sound = True, self._sound + 1
            else:  # what is left behind the last stride is heard once, too
                sound, self._sound = (self._sound - 1) * self._stride_s < sound_end_s - _EPSILON_S, None
        return Due(picture, sound)

    def skip_to(self, now_s: float) -> int:
        """Leave out moments so far back that newer ones are due already; returns how many."""
        before = (self._picture or 0) + (self._sound or 0)
        if self._picture is not None:
            self._picture = max(self._picture, int((now_s + _EPSILON_S) / self._hop_s))
        if self._sound is not None:
            self._sound = max(self._sound, int((now_s + _EPSILON_S) / self._stride_s))
        return (self._picture or 0) + (self._sound or 0) - before
