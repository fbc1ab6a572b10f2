"""What only a live run has: a show with its states, a narrator that is held back, alarms, and a watchdog that is fed by progress.

In, once a moment: what came from the devices and the reading that was made of it. Out: the reading as it is published, the show's state, and
sentences for the technician. It has no thread of its own, and no clock but the one that is handed in.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.clock import Clock
from runtime.config import LiveConfig
from runtime.governor import Governor, read_thermal_zones, thermal_headroom_c
from runtime.live import LiveFeed
from runtime.messages import Notice, Picture, Reading, Status
from runtime.service import Watchdog
from runtime.show import (
    Float32,
    Show,
    picture_activity,
    picture_change,
    shrunk,
    sound_activity,
)
from runtime.sources import Arrived
from runtime.wall_clock import clock_synchronised
from vaemotion.contract.audio import level_dbfs
from vaemotion.contract.errors import UserError

CUT_PICTURE_CHANGE = 0.12  # mean change of luminance from one picture to the next that is another scene; a fast pan is about 0.05
ALARM_S = 60.0  # between two notices of the same alarm


@dataclass(frozen=True)
class Step:
    """What a moment came to. ``reading``: to be published, None where there is none; ``state``: the show's; ``narrate``: a narration may be
    asked for now."""

    reading: Reading | None
    state: str
    notices: tuple[Notice, ...]
    narrate: bool


@dataclass
class Installation:
    """``reload``: reads the configuration again, for SIGHUP; ``local_time`` of the opening hours; ``headroom_c``: degrees until
    the machine throttles."""

    config: LiveConfig
    feed: LiveFeed
    clock: Clock
    frame_hop_s: float
    watchdog: Watchdog = field(default_factory=Watchdog)
    reload: Callable[[], LiveConfig] | None = None
    local_time: Callable[[], datetime.datetime] = lambda: datetime.datetime.now().astimezone()
    headroom_c: Callable[[], float | None] = lambda: thermal_headroom_c(read_thermal_zones())

    def __post_init__(self) -> None:
        self.governor = Governor(self.config.narrator.every_s, self.frame_hop_s)
        self.show = Show(self.config.show, tuple(self.feed.devices))
        self._state = "empty"
        self._picture: Float32 | None = None
        self._moves = 0.0
        self._headroom_c = self.headroom_c()
        self._alarms_s: dict[str, float] = {}
        self._latency_ms: float | None = None

    def begin(self) -> None:
        """Everything is open: a service's manager may count us as started."""
        self.watchdog.ready("running")

    def end(self) -> None:
        self.watchdog.stopping()
        self.watchdog.close()

    def cuts(self, picture: Picture) -> bool:
        """Once for each picture that is encoded, (H, W, 3) uint8 RGB: whether it shows another scene than the one before it."""
        before, self._picture = self._picture, shrunk(picture)
        self._moves = 0.0 if before is None else picture_activity(before, self._picture)
        return before is not None and picture_change(before, self._picture) > CUT_PICTURE_CHANGE

    def step(
        self, now_s: float, reading: Reading | None, arrived: Arrived, newest_s: float, skipped: int, *, muted: bool, narrating: bool
    ) -> Step:  # fmt: skip
        """One moment. ``newest_s``: time of the newest evidence; ``skipped``: moments that were dropped so far."""
        live = self.feed.live()
        shown = self.show.step(now_s, reading, self._activity(arrived, live), live, muted, self.local_time())
        self._state, published = shown.state.value, shown.reading
        self._latency_ms, now_there_s = None, self.clock.now_s()
        if published is not None:
            self._latency_ms = round((now_there_s - newest_s) * 1000, 1)
            published = replace(published, latency_ms=self._latency_ms)
        spent_ms = None if published is None else (now_there_s - now_s) * 1000
        due = self.governor.step(now_s, spent_ms, skipped, self._headroom_c, narrating)
        narrate = due and published is not None and self._state not in ("empty", "muted")
        return Step(published, self._state, tuple(self._alarms(now_s)), narrate)

    def complete(self, status: Status, now_s: float, moments: int) -> Status:
        """The status of this second with what the devices say. Progress feeds the watchdog here."""
        self._headroom_c = self.headroom_c()
        perceiving = self.feed.live() - ({"microphone"} if status.ignoring_audio_s > 0 else set[str]())
        self.watchdog.progress(status.readings, moments, now_s, live=bool(perceiving))
        narrating_ms, latency_ms = self.governor.latency_p99_ms()
        return replace(
            status,
            state=self._state,
            muted=status.muted or self._state == "muted",
            **self.feed.status(now_s),
            skew_ms=_rounded(self.feed.skew_ms),
            drift_ppm=_rounded(self.feed.drift_ppm),
            latency_p99_ms=_rounded(latency_ms),
            latency_p99_narrating_ms=_rounded(narrating_ms),
            clock_synchronised=clock_synchronised(),
            narrator=self.governor.state,
        )

    def read_again(self, now_s: float) -> Notice:
        """SIGHUP: show, narrator and alarms as the file says now; the rest needs a restart. A file that is wrong changes nothing."""
        if self.reload is None:
            return Notice(round(now_s, 3), "there is no configuration file to read again")
        self.watchdog.reloading()
        try:
            new = self.reload()
        except UserError as error:
            return Notice(round(now_s, 3), f"configuration not applied: {error}")
        finally:
            self.watchdog.ready()
        same = replace(new, show=self.config.show, narrator=self.config.narrator, runtime=self.config.runtime)
        rest = "" if same == self.config else "; other sections apply after a restart"
        self.config = replace(self.config, show=new.show, narrator=new.narrator, runtime=new.runtime)
        self.governor = Governor(new.narrator.every_s, self.frame_hop_s)
        self.show = Show(new.show, tuple(self.feed.devices))
        return Notice(round(now_s, 3), f"configuration read again: show, narrator and alarms{rest}")

    def _activity(self, arrived: Arrived, live: frozenset[str]) -> float:
        """The larger of what moves and what sounds, in [0, 1]."""
        moves = sounds = 0.0
        if "camera" not in live:
            self._picture = None
        elif arrived.frame is not None:
            moves = self._moves
        if "microphone" in live and arrived.sound:
            samples = np.concatenate([sound.samples for sound in arrived.sound])
            level = level_dbfs(samples)
            sounds = (
                0.0 if math.isinf(level) else sound_activity(level, self.config.microphone.noise_floor_dbfs)
            )
        return max(moves, sounds)

    def _alarms(self, now_s: float) -> list[Notice]:
        """Latency and skew beyond what the configuration allows, each at most once a minute."""
        skew_ms, limits, found = self.feed.skew_ms, self.config.runtime, dict[str, str]()
        if self._latency_ms is not None and self._latency_ms > limits.latency_alarm_ms:
            found["latency"] = (
                f"a reading came {self._latency_ms:.0f} ms after its evidence, allowed are {limits.latency_alarm_ms:g}"
            )
        if skew_ms is not None and abs(skew_ms) > limits.skew_alarm_ms:
            found["skew"] = (
                f"sound is {skew_ms:+.0f} ms from the picture, allowed are {limits.skew_alarm_ms:g}; "
                "set offset_ms of the device that lags"
            )
        due = [kind for kind in found if now_s >= self._alarms_s.get(kind, 0.0)]
        self._alarms_s |= dict.fromkeys(due, now_s + ALARM_S)
        return [Notice(round(now_s, 3), found[kind]) for kind in due]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
