"""Presenter of a file: every reading is published as it is, and narrations come at fixed media times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from runtime.clock import Clock
from runtime.messages import Message, Picture
from runtime.perception.perception import Evidence
from runtime.perception.ticks import Presented, Tick
from runtime.show.controls import ControlState
from runtime.show.status import Heartbeat, Progress, RunState, build_status
from vaemotion.contract.speech import UNSET, Speech
from vaemotion.contract.windows import EPSILON_S


class FilePresenter:
    """Present the ticks of a file, or of a recording of features."""

    stamps_frames = False

    def __init__(
        self, narrate_every_s: float, controls: ControlState, clock: Clock, speech: Speech = UNSET
    ) -> None:
        """Take the seconds between narrations, 0 for none, and the clock that latency is measured with.

        ``speech``: as far as the configuration sets it.
        """
        self.speech = speech
        self._every_s, self.controls, self._clock = narrate_every_s, controls, clock
        self._heartbeat = Heartbeat(controls)
        self._state = RunState(narrator="on" if narrate_every_s else "off")
        self._next_narration_s = narrate_every_s or float("inf")
        self._evidence: tuple[Evidence, ...] = ()

    def attend(self, now_s: float, progress: Progress) -> Sequence[Message]:
        """Apply the controls of a show, and return their notices and the status if it is due."""
        notices, beat = self._heartbeat.attend(now_s)
        if beat is None:
            return notices
        return [*notices, build_status(beat, self.controls, progress, self._state)]

    def cuts(self, picture: Picture) -> bool:
        """Return False: the frames of a file lie on its own timeline, cuts included, as training saw them."""
        return False

    def present(self, tick: Tick, progress: Progress, narrating: bool) -> Presented:
        """Return the tick's reading, with its latency where the clock is real."""
        messages: tuple[Message, ...] = ()
        if tick.evidence is not None:
            self._evidence = (tick.evidence,)
            reading = tick.evidence.reading
            if not self._clock.simulated:
                latency_ms = round((self._clock.now_s() - reading.time_s) * 1000, 1)
                reading = replace(reading, latency_ms=latency_ms)
            messages = (reading,)
        newest_s = self._evidence[0].reading.time_s if self._evidence else tick.time_s
        due = bool(self._evidence) and tick.time_s >= self._next_narration_s - EPSILON_S
        if due:
            self._next_narration_s += self._every_s
        return Presented(newest_s, messages, self._evidence if due else ())

    def last_narration(self) -> Sequence[Evidence]:
        """Return the last evidence where narrations are wanted."""
        return self._evidence if self._every_s else ()
