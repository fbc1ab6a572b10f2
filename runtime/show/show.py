"""The show: smoothed readings, a committed label, and a state that does not flicker.

Pure: no threads and no clock of its own. In: the time, a reading (or none), the activity, the live devices,
the mute control, and the venue's local time. Out: ``Shown``.

``State`` is the first that applies:

- ``muted``: a control muted the show, or it is outside the opening hours. Applied at once, in both
  directions.
- ``empty``: no device is live, or there was no activity for ``empty_after_s`` (or since the start).
- ``degraded``: a configured device is not live (absent, lost, frozen) while another is.
- ``engaged``: activity has lasted for ``engage_after_s``, and has not stopped for ``release_after_s`` since.
- ``attract``: there was activity, but none that lasted.

A device counts as lost at once, and as live again only after ``settle_s`` without interruption. Every state
but ``muted`` lasts at least ``settle_s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from runtime.messages import Reading
from runtime.show.opening_hours import parse_opening_hours
from vaemotion.contract.errors import UsageError
from vaemotion.contract.settings import Impossible, demand, within
from vaemotion.contract.windows import EPSILON_S


class State(StrEnum):
    """State of the show; the module's docstring defines each."""

    EMPTY = "empty"
    ATTRACT = "attract"
    ENGAGED = "engaged"
    DEGRADED = "degraded"
    MUTED = "muted"


@dataclass(frozen=True)
class ShowConfig:
    """Settings of the show. Every ``*_s`` is in seconds.

    ``smoothing_s``: time constant of valence, arousal and emotions, 0 for none. ``forget_after_s``: after a
    longer time without a reading, smoothing and label restart. ``commit_updates``: readings in a row whose
    strongest (smoothed) emotion must agree before it becomes the label.

    ``activity_smoothing_s``: time constant of the activity, which begins at ``active_above`` and stops at
    ``active_below`` (0 to 1). ``engage_after_s``, ``release_after_s``, ``empty_after_s``, ``settle_s``:
    see the module. ``opening_hours``: in local time, see ``parse_opening_hours``; empty: always open.
    """

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
            self,
            smoothing_s=minute,
            forget_after_s=minute,
            commit_updates=(1, 1000),
            activity_smoothing_s=minute,
            active_above=(0, 1),
            active_below=(0, 1),
            engage_after_s=day,
            release_after_s=day,
            empty_after_s=day,
            settle_s=minute,
        )
        long_enough = self.empty_after_s >= self.release_after_s
        demand(
            self,
            *ranges,
            ("active_below", self.active_below < self.active_above, "below active_above"),
            ("empty_after_s", long_enough, "at least release_after_s, in seconds"),
        )
        try:
            for text in self.opening_hours:
                parse_opening_hours(text)
        except UsageError as error:
            raise Impossible({"opening_hours": f"cannot be read: {error}"}) from error


@dataclass(frozen=True)
class Shown:
    """The show's state, and the reading to publish.

    ``reading``: the reading that came in, None when none did. Its valence, arousal and emotions are
    smoothed, and it has the label (None until one is committed) and the state. A muted show has readings,
    too: each sink decides whether it sends them.
    """

    state: State
    reading: Reading | None


class Show:
    """One show over one run. ``wanted``: the roles of the configured devices."""

    def __init__(self, config: ShowConfig, wanted: tuple[str, ...]) -> None:
        self._config, self._wanted = config, frozenset(wanted)
        self._hours = [parse_opening_hours(text) for text in config.opening_hours]
        self._state: State | None = None
        self._entered_s = 0.0
        self._live_since_s: dict[str, float] = {}
        self._presence, self._activity, self._active = State.EMPTY, 0.0, False
        self._turned_s = 0.0  # time at which activity last began or stopped
        self._stepped_s: float | None = None
        self._values: npt.NDArray[np.float64] | None = None  # (2 + emotions,): valence, arousal, emotions
        self._read_s = 0.0
        self._label: str | None = None
        self._strongest, self._agreeing = "", 0

    def step(
        self,
        now_s: float,
        reading: Reading | None,
        activity: float,
        live: set[str] | frozenset[str],
        muted: bool,
        local_time: datetime,
    ) -> Shown:
        """Update the show once a tick, in ascending time.

        ``activity`` in [0, 1]: the larger of the frame's and the sound's; ``live``: roles of the live
        devices; ``muted``: a control muted the show.
        """
        trusted = self._trusted(now_s, live)
        presence = self._sense(now_s, activity, bool(trusted))
        closed = bool(self._hours) and not any(hours.is_open(local_time) for hours in self._hours)
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
        """Return the live devices, without those that have just come back."""
        first = -math.inf if self._stepped_s is None else now_s
        self._live_since_s = {name: self._live_since_s.get(name, first) for name in live}
        settled_s = now_s - self._config.settle_s + EPSILON_S
        return {name for name, since_s in self._live_since_s.items() if since_s <= settled_s}

    def _sense(self, now_s: float, activity: float, perceives: bool) -> State:
        """Return empty, attract or engaged; without a live device, activity restarts at 0."""
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
        lasted_s = now_s - self._turned_s + EPSILON_S
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
        """Change to ``target`` unless the state is younger than ``settle_s``; muting changes at once."""
        settled = now_s - self._entered_s >= self._config.settle_s - EPSILON_S
        at_once = self._state is None or State.MUTED in (self._state, target)
        if target is not self._state and (settled or at_once):
            self._state, self._entered_s = target, now_s
        assert self._state is not None
        return self._state

    def _smooth(self, now_s: float, reading: Reading, state: State) -> Reading:
        """Return the reading with smoothed values, the committed label and the state."""
        values = np.array([reading.valence, reading.arousal, *reading.emotions.values()])
        gap_s = now_s - self._read_s
        if self._values is None or gap_s > self._config.forget_after_s + EPSILON_S:
            self._values, self._label, self._agreeing = values, None, 0
        else:
            share = _weight(gap_s, self._config.smoothing_s)
            self._values = (1 - share) * self._values + share * values
        self._read_s = now_s
        valence, arousal, *shares = (float(value) for value in self._values)
        emotions = {name: round(p, 4) for name, p in zip(reading.emotions, shares, strict=True)}
        self._commit(max(emotions, key=emotions.__getitem__))
        return replace(
            reading,
            valence=round(valence, 6),
            arousal=round(arousal, 6),
            emotions=emotions,
            label=self._label,
            state=state.value,
        )

    def _commit(self, strongest: str) -> None:
        """Count readings that agree on the strongest emotion; enough of them make it the label."""
        self._agreeing = self._agreeing + 1 if strongest == self._strongest else 1
        self._strongest = strongest
        if self._agreeing >= self._config.commit_updates:
            self._label = strongest


def _weight(elapsed_s: float, time_constant_s: float) -> float:
    """Return the newest value's weight in an exponential smoothing: 1 - exp(-elapsed / time constant)."""
    return -math.expm1(-elapsed_s / time_constant_s) if time_constant_s > 0 else 1.0
