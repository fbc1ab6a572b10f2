"""What a show is given of the readings: smoothed, with a label that is committed, and in a state that does not flicker.

Pure: no threads and no clock of its own. In: the time, a reading (or none), how much moves and sounds, which modalities are live,
whether a control muted the show, and the venue's local time. Out: ``Shown``. Beside it the measures of activity that go in.

``State``, the first that applies:

- ``muted``: a control muted the show, or it is outside the opening hours. Obeyed at once, in both directions.
- ``empty``: no device gives anything, or nothing has moved or sounded for ``empty_after_s`` (or since the start).
- ``degraded``: a configured device is not live (absent, lost, frozen) while another still perceives.
- ``engaged``: activity has lasted for ``engage_after_s`` and has not been over for ``release_after_s`` since.
- ``attract``: something has moved or sounded, but there is no sustained activity.

A device counts as gone at once, and as back only after ``settle_s`` without interruption; every state but ``muted`` lasts ``settle_s`` at least.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import cv2
import numpy as np
import numpy.typing as npt

from runtime.messages import Picture, Reading
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import Impossible, demand, within

Float32 = npt.NDArray[np.float32]

SHRUNK_PX = (32, 18)  # width, height: coarse enough that a camera's noise averages out
FULL_PICTURE_CHANGE = (
    0.05  # mean change of luminance between two pictures that is activity 1; noise is about 0.001
)
FULL_SOUND_DB = 30.0  # above the noise floor: activity 1
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"(?:([a-z,-]+) +)?(\d\d):(\d\d)-(\d\d):(\d\d)")
_EPSILON_S = 1e-6


class State(StrEnum):
    """See the module."""

    EMPTY = "empty"
    ATTRACT = "attract"
    ENGAGED = "engaged"
    DEGRADED = "degraded"
    MUTED = "muted"


# --- activity ---------------------------------------------------------------------------------------------------------


def shrunk(picture: Picture) -> Float32:
    """A picture (H, W, 3) uint8 RGB as ``picture_activity`` takes it: (18, 32) float32 luminance (BT.601) in [0, 1]."""
    small = cv2.resize(picture, SHRUNK_PX, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)


def picture_change(before: Float32, after: Float32) -> float:
    """Mean absolute difference of luminance, in [0, 1]. Both from ``shrunk``."""
    return float(np.abs(after - before).mean())


def picture_activity(before: Float32, after: Float32) -> float:
    """How much two pictures differ, in [0, 1]: mean absolute difference of luminance, ``FULL_PICTURE_CHANGE`` being 1.
    Both from ``shrunk``."""
    return min(1.0, picture_change(before, after) / FULL_PICTURE_CHANGE)


def sound_activity(level_dbfs: float, floor_dbfs: float) -> float:
    """How far sound stands above the room's noise floor, in [0, 1]: ``FULL_SOUND_DB`` above it is 1."""
    return min(1.0, max(0.0, (level_dbfs - floor_dbfs) / FULL_SOUND_DB))


# --- opening hours ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpeningHours:
    """``days``: 0 (Monday) to 6, on which they begin; from ``opens_min`` to before ``closes_min``, in minutes since that day's
    midnight (local time). Over midnight ``closes_min`` is above 1440."""

    days: frozenset[int]
    opens_min: int
    closes_min: int

    def holds(self, local_time: datetime) -> bool:
        minute = local_time.hour * 60 + local_time.minute
        today, yesterday = local_time.weekday(), (local_time.weekday() - 1) % 7
        return (today in self.days and self.opens_min <= minute < self.closes_min) or (
            yesterday in self.days and minute + 1440 < self.closes_min
        )


def parse_opening_hours(text: str) -> OpeningHours:
    """ "10:00-18:00", "tue-sun 10:00-18:00", "fri,sat 20:00-02:00". Raises UsageError."""
    parts = _HOURS.fullmatch(text.strip().lower())
    if parts is None:
        raise UsageError(
            f'{text!r} are no opening hours; write them as "10:00-18:00" or "tue-sun 10:00-18:00"'
        )
    opens_min, closes_min = (int(parts[i]) * 60 + int(parts[i + 1]) for i in (2, 4))
    if max(opens_min, closes_min) > 1440 or int(parts[3]) > 59 or int(parts[5]) > 59:
        raise UsageError(f"{text!r} names a time that no day has; times go from 00:00 to 24:00")
    if opens_min == closes_min:
        raise UsageError(f"{text!r} opens and closes at the same time; the whole day is 00:00-24:00")
    closes_min += 1440 * (closes_min < opens_min)
    return OpeningHours(_days(parts[1] or "mon-sun", text), opens_min, closes_min)


def _days(named: str, text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in named.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise UsageError(f"{text!r}: {part!r} is no day or range of days; days are {', '.join(DAYS)}")
        start = DAYS.index(first)
        length = (DAYS.index(last or first) - start) % 7 + 1  # "sat-mon" goes over the week's end
        days |= {(start + i) % 7 for i in range(length)}
    return frozenset(days)


# --- the show ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShowConfig:
    """How calm a show is. Every ``*_s`` is in seconds.

    ``smoothing_s``: time constant of valence, arousal and emotions, 0 for none; ``forget_after_s``: without a reading for longer, smoothing
    and label begin anew; ``commit_updates``: readings in a row whose (smoothed) strongest emotion must agree before it becomes the label.

    ``activity_smoothing_s``: time constant of the activity; activity begins at ``active_above`` and is over at ``active_below`` (0 to 1);
    ``engage_after_s``, ``release_after_s``, ``empty_after_s``, ``settle_s``: see the module. ``opening_hours``: in local time, see
    ``parse_opening_hours``; none: always open."""

    smoothing_s: float = 0.2
    forget_after_s: float = 1.0
    commit_updates: int = 5
    activity_smoothing_s: float = 1.0
    active_above: float = 0.15
    active_below: float = 0.08
    engage_after_s: float = 2.0
    release_after_s: float = 10.0
    empty_after_s: float = 60.0
    settle_s: float = 1.0
    opening_hours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        minute, day = (0.0, 60.0), (0.0, 86_400.0)
        ranges = within(
            self, smoothing_s=minute, forget_after_s=minute, commit_updates=(1, 1000), activity_smoothing_s=minute,
            active_above=(0, 1), active_below=(0, 1), engage_after_s=day, release_after_s=day, empty_after_s=day,
            settle_s=minute,
        )  # fmt: skip
        demand(
            self,
            *ranges,
            ("active_below", self.active_below < self.active_above, "below active_above"),
            (
                "empty_after_s",
                self.empty_after_s >= self.release_after_s,
                "at least release_after_s, in seconds",
            ),
        )
        try:
            for text in self.opening_hours:
                parse_opening_hours(text)
        except UsageError as error:
            raise Impossible({"opening_hours": f"cannot be read: {error}"}) from error


@dataclass(frozen=True)
class Shown:
    """``reading``: what came in, its valence, arousal and emotions smoothed, with the label (None until one is committed) and the state;
    None when none came in. A muted show's readings are there, too: whether they are sent is a sink's affair."""

    state: State
    reading: Reading | None


class Show:
    """One show over one run. ``wanted``: the configured modalities, of which those that are live are handed to each step."""

    def __init__(self, config: ShowConfig, wanted: tuple[str, ...]) -> None:
        self._config, self._wanted = config, frozenset(wanted)
        self._hours = [parse_opening_hours(text) for text in config.opening_hours]
        self._state: State | None = None
        self._entered_s = 0.0
        self._live_since_s: dict[str, float] = {}
        self._presence, self._activity, self._active = State.EMPTY, 0.0, False
        self._turned_s = 0.0  # when activity last began or was over
        self._stepped_s: float | None = None
        self._values: npt.NDArray[np.float64] | None = None  # (2 + emotions,): valence, arousal, emotions
        self._read_s = 0.0
        self._label: str | None = None
        self._strongest, self._agreeing = "", 0

    def step(
        self, now_s: float, reading: Reading | None, activity: float, live: set[str] | frozenset[str], muted: bool,
        local_time: datetime,
    ) -> Shown:  # fmt: skip
        """Once a moment, in ascending time. ``activity`` in [0, 1]: the larger of what moves and what sounds."""
        trusted = self._trusted(now_s, live)
        presence = self._sense(now_s, activity, bool(trusted))
        closed = bool(self._hours) and not any(hours.holds(local_time) for hours in self._hours)
        if muted or closed:
            target = State.MUTED
        elif trusted and self._wanted - trusted:
            target = State.DEGRADED
        else:
            target = presence
        state = self._enter(now_s, target)
        self._stepped_s = now_s
        return Shown(state, None if reading is None else self._smooth(now_s, reading, state))

    def _trusted(self, now_s: float, live: set[str] | frozenset[str]) -> set[str]:
        """Live modalities, but for those that have just come back."""
        first = -math.inf if self._stepped_s is None else now_s
        self._live_since_s = {name: self._live_since_s.get(name, first) for name in live}
        settled_s = now_s - self._config.settle_s + _EPSILON_S
        return {name for name, since_s in self._live_since_s.items() if since_s <= settled_s}

    def _sense(self, now_s: float, activity: float, perceives: bool) -> State:
        """Empty, attract or engaged; where nothing is perceived, nothing is known of before either."""
        config, was_active = self._config, self._active
        elapsed_s = now_s - (now_s if self._stepped_s is None else self._stepped_s)
        self._activity += _weight(elapsed_s, config.activity_smoothing_s) * (activity - self._activity)
        if not perceives:
            self._presence, self._activity = State.EMPTY, 0.0
        self._active = perceives and self._activity >= (
            config.active_above if not was_active else math.nextafter(config.active_below, math.inf)
        )
        if self._active != was_active:
            self._turned_s = now_s
        lasted_s = now_s - self._turned_s + _EPSILON_S
        if self._active and lasted_s >= config.engage_after_s:
            self._presence = State.ENGAGED
        elif self._active and self._presence is State.EMPTY:
            self._presence = State.ATTRACT
        elif not self._active and lasted_s >= config.empty_after_s:
            self._presence = State.EMPTY
        elif not self._active and lasted_s >= config.release_after_s and self._presence is State.ENGAGED:
            self._presence = State.ATTRACT
        return self._presence

    def _enter(self, now_s: float, target: State) -> State:
        """Into ``target``, unless the state is too young to be left; muting knows no such patience."""
        settled = now_s - self._entered_s >= self._config.settle_s - _EPSILON_S
        at_once = self._state is None or State.MUTED in (self._state, target)
        if target is not self._state and (settled or at_once):
            self._state, self._entered_s = target, now_s
        assert self._state is not None
        return self._state

    def _smooth(self, now_s: float, reading: Reading, state: State) -> Reading:
        values = np.array([reading.valence, reading.arousal, *reading.emotions.values()])
        gap_s = now_s - self._read_s
        if self._values is None or gap_s > self._config.forget_after_s + _EPSILON_S:
            self._values, self._label, self._agreeing = values, None, 0
        else:
            share = _weight(gap_s, self._config.smoothing_s)
            self._values = (1 - share) * self._values + share * values
        self._read_s = now_s
        valence, arousal, *shares = (float(value) for value in self._values)
        emotions = {name: round(p, 4) for name, p in zip(reading.emotions, shares, strict=True)}
        self._commit(max(emotions, key=emotions.__getitem__))
        return replace(
            reading, valence=round(valence, 6), arousal=round(arousal, 6), emotions=emotions, label=self._label,
            state=state.value,
        )  # fmt: skip

    def _commit(self, strongest: str) -> None:
        self._agreeing = self._agreeing + 1 if strongest == self._strongest else 1
        self._strongest = strongest
        if self._agreeing >= self._config.commit_updates:
            self._label = strongest


def _weight(elapsed_s: float, time_constant_s: float) -> float:
    """Of the newest value in an exponential smoothing, after a step of any length: 1 - exp(-elapsed / time constant)."""
    return -math.expm1(-elapsed_s / time_constant_s) if time_constant_s > 0 else 1.0
