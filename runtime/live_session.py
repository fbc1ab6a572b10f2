"""Presenter of live devices: show, governor, alarms, watchdog, reload of the configuration.

In, once a tick: the devices' input and the evidence made of it. Out: the reading as the show publishes it,
and sentences for the technician. It has no thread, and no clock but the one that it is given.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.clock import Clock
from runtime.config import LiveConfig
from runtime.machine.stop import Stop
from runtime.machine.thermal import read_thermal_zones, thermal_headroom_c
from runtime.machine.wall_clock import clock_synchronised
from runtime.machine.watchdog import Watchdog
from runtime.messages import Message, Notice, Picture, Reading
from runtime.narration.governor import Governor
from runtime.perception.perception import Evidence
from runtime.perception.ticks import Presented, Tick
from runtime.show.activity import Float32, frame_activity, frame_change, shrink, sound_activity
from runtime.show.controls import ControlState
from runtime.show.show import Show
from runtime.show.status import Beat, Heartbeat, Progress, RunState, build_status
from runtime.sources.feed import Arrived
from runtime.sources.supervision import LiveFeed
from vaemotion.contract.audio import level_dbfs
from vaemotion.contract.errors import UserError
from vaemotion.contract.speech import Speech

# Mean change of luminance between two frames that is another scene; a fast pan is about 0.05.
CUT_FRAME_CHANGE = 0.12
# Between two notices of the same alarm.
ALARM_S = 60.0
# States of the show in which nobody is there for a narration.
_SILENT = ("empty", "muted")


def _local_time() -> datetime.datetime:
    return datetime.datetime.now().astimezone()


def _headroom_c() -> float | None:
    return thermal_headroom_c(read_thermal_zones())


@dataclass(frozen=True)
class Venue:
    """The world around a live run; a soak simulates it."""

    # Fed by progress, where a service manager watches the process.
    watchdog: Watchdog = field(default_factory=Watchdog)
    # Local time, for the opening hours.
    local_time: Callable[[], datetime.datetime] = _local_time
    # Degrees Celsius until the machine throttles; None where no sensor tells.
    headroom_c: Callable[[], float | None] = _headroom_c


class LiveSession:
    """Present the ticks of live devices as the show wants them."""

    stamps_frames = True

    def __init__(
        self,
        config: LiveConfig,
        feed: LiveFeed,
        clock: Clock,
        frame_hop_s: float,
        controls: ControlState,
        stop: Stop,
        reload: Callable[[], LiveConfig] | None = None,
        venue: Venue | None = None,
    ) -> None:
        """Take the parts of a live run.

        ``frame_hop_s``: seconds between two ticks. ``stop``: signals; its ``reload`` asks for the
        configuration to be read again by ``reload``, None where there is no file. ``venue``: None for the
        real one.
        """
        self._config, self._feed, self._clock, self._frame_hop_s = config, feed, clock, frame_hop_s
        self.controls, self._stop, self._reload = controls, stop, reload
        self._venue = venue or Venue()
        self._heartbeat = Heartbeat(controls)
        self.governor = Governor(config.narrator.every_s, frame_hop_s)
        self.show = Show(config.show, tuple(feed.devices))
        self._state = "empty"
        self._shrunk: Float32 | None = None
        self._moves = 0.0
        self._headroom_c = self._venue.headroom_c()
        self._alarms_s: dict[str, float] = {}
        self._latency_ms: float | None = None
        self._evidence: tuple[Evidence, ...] = ()

    @property
    def speech(self) -> Speech:
        """Settings of narrations, as far as the configuration has them."""
        return self._config.narrator

    def __enter__(self) -> LiveSession:
        """Tell the service manager that everything is open."""
        self._venue.watchdog.ready("running")
        return self

    def __exit__(self, *_: object) -> None:
        """Tell the service manager that the run ends."""
        self._venue.watchdog.stopping()
        self._venue.watchdog.close()

    def cuts(self, picture: Picture) -> bool:
        """Return True when ``picture``, (H, W, 3) uint8 RGB, shows another scene than the one before it.

        Call it once for each frame that is encoded.
        """
        before, self._shrunk = self._shrunk, shrink(picture)
        self._moves = 0.0 if before is None else frame_activity(before, self._shrunk)
        return before is not None and frame_change(before, self._shrunk) > CUT_FRAME_CHANGE

    def attend(self, now_s: float, progress: Progress) -> Sequence[Message]:
        """Apply controls and reloads, feed the watchdog, and return the notices and status that are due."""
        notices, beat = self._heartbeat.attend(now_s)
        if self._stop.reload.is_set():
            self._stop.reload.clear()
            notices.append(self._read_config(now_s))
        if beat is None:
            return notices
        self._headroom_c = self._venue.headroom_c()
        ignored = {"microphone"} if self.controls.ignoring_audio_s(now_s) > 0 else set[str]()
        perceiving = bool(self._feed.live() - ignored)
        self._venue.watchdog.progress(progress.readings, progress.ticks, now_s, live=perceiving)
        return [*notices, build_status(beat, self.controls, progress, self._run_state(beat))]

    def present(self, tick: Tick, progress: Progress, narrating: bool) -> Presented:
        """Return the reading as the show publishes it, and whether a narration is due."""
        if tick.evidence is not None:
            self._evidence = (tick.evidence,)
        live = self._feed.live()
        reading = None if tick.evidence is None else tick.evidence.reading
        activity = self._activity(tick.arrived, live)
        shown = self.show.step(
            tick.time_s, reading, activity, live, self.controls.muted, self._venue.local_time()
        )
        self._state = shown.state.value
        published = self._with_latency(shown.reading, tick)
        spent_ms = None if published is None else (self._clock.now_s() - tick.time_s) * 1000
        due = self.governor.step(tick.time_s, spent_ms, progress.skipped, self._headroom_c, narrating)
        narrate = due and published is not None and self._state not in _SILENT
        return Presented(
            newest_s=self._evidence[0].reading.time_s if self._evidence else tick.time_s,
            messages=(*self._alarms(tick.time_s), *(() if published is None else (published,))),
            narrate=self._evidence if narrate else (),
            cancel_narration=self._state in _SILENT,
        )

    def last_narration(self) -> Sequence[Evidence]:
        """Return the last evidence where narrations are wanted."""
        return self._evidence if self._config.narrator.every_s else ()

    def _with_latency(self, reading: Reading | None, tick: Tick) -> Reading | None:
        """Return the reading with the milliseconds since its newest evidence."""
        self._latency_ms = None
        if reading is None:
            return None
        self._latency_ms = round((self._clock.now_s() - tick.newest_s) * 1000, 1)
        return replace(reading, latency_ms=self._latency_ms)

    def _run_state(self, beat: Beat) -> RunState:
        narrating_ms, latency_ms = self.governor.latency_p99_ms()
        return RunState(
            narrator=self.governor.state,
            state=self._state,
            **self._feed.status(beat.time_s),
            skew_ms=_rounded(self._feed.skew_ms),
            drift_ppm=_rounded(self._feed.drift_ppm),
            latency_p99_ms=_rounded(latency_ms),
            latency_p99_narrating_ms=_rounded(narrating_ms),
            clock_synchronised=clock_synchronised(),
        )

    def _read_config(self, now_s: float) -> Notice:
        """Reload the configuration, as SIGHUP asks.

        Show, narrator and alarms change, the rest needs a restart. A file that is wrong changes nothing.
        """
        if self._reload is None:
            return Notice(round(now_s, 3), "no configuration file to reload")
        self._venue.watchdog.reloading()
        try:
            new = self._reload()
        except UserError as error:
            return Notice(round(now_s, 3), f"configuration not reloaded: {error}")
        finally:
            self._venue.watchdog.ready()
        old = self._config
        same = replace(new, show=old.show, narrator=old.narrator, runtime=old.runtime)
        rest = "" if same == old else "; other sections apply after a restart"
        self._config = replace(old, show=new.show, narrator=new.narrator, runtime=new.runtime)
        self.governor = Governor(new.narrator.every_s, self._frame_hop_s)
        self.show = Show(new.show, tuple(self._feed.devices))
        return Notice(round(now_s, 3), f"configuration reloaded: show, narrator and alarms{rest}")

    def _activity(self, arrived: Arrived, live: frozenset[str]) -> float:
        """Return the larger of movement and sound, in [0, 1]."""
        moves = sounds = 0.0
        if "camera" not in live:
            self._shrunk = None
        elif arrived.frame is not None:
            moves = self._moves
        if "microphone" in live and arrived.sound:
            level = level_dbfs(np.concatenate([sound.samples for sound in arrived.sound]))
            floor_dbfs = self._config.microphone.noise_floor_dbfs
            sounds = 0.0 if math.isinf(level) else sound_activity(level, floor_dbfs)
        return max(moves, sounds)

    def _alarms(self, now_s: float) -> list[Notice]:
        """Return notices of latency and skew beyond their limits, each at most once in ``ALARM_S``.

        The pauses of a device that is slower than the ticks, such as a camera of one frame a second, come on
        top of the limits.
        """
        skew_ms, limits, found = self._feed.skew_ms, self._config.runtime, dict[str, str]()
        live = [device.monitor for device in self._feed.devices.values() if device.monitor.state == "live"]
        pauses_ms = [1000 * max(0.0, monitor.interval_s - self._frame_hop_s) for monitor in live]
        least_ms, most_ms = min(pauses_ms, default=0.0), max(pauses_ms, default=0.0)
        if self._latency_ms is not None and self._latency_ms > limits.latency_alarm_ms + least_ms:
            found["latency"] = (
                f"latency of a reading is {self._latency_ms:.0f} ms (limit {limits.latency_alarm_ms:g} ms)"
            )
        if skew_ms is not None and abs(skew_ms) > limits.skew_alarm_ms + most_ms:
            found["skew"] = (
                f"sound is {skew_ms:+.0f} ms from the frame (limit {limits.skew_alarm_ms:g} ms); "
                "set offset_ms of the device that lags"
            )
        due = [kind for kind in found if now_s >= self._alarms_s.get(kind, 0.0)]
        self._alarms_s |= dict.fromkeys(due, now_s + ALARM_S)
        return [Notice(round(now_s, 3), found[kind]) for kind in due]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
