"""One run: ticks with evidence come in, readings and narrations go out, from ``Start`` to ``End``.

The intake says what was perceived at each tick, the presenter what is published of it, the narrator makes
sentences, and the publisher hands all messages to the sinks. ``runtime.run`` builds these parts.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.machine.stop import Stop
from runtime.messages import End, Start
from runtime.narration.narrator import NarrationMaker, Withheld
from runtime.perception.perception import Evidence
from runtime.perception.ticks import Presented, Tick
from runtime.show.controls import ControlState
from runtime.show.status import Progress
from runtime.sinks.publisher import Publisher
from vaemotion.contract.errors import UserError
from vaemotion.contract.prompts import folded
from vaemotion.contract.speech import Speech

# At the end of a source, the time that a sentence in the making is waited for.
LAST_NARRATION_S = 5.0


class TickSource(Protocol):
    """The ticks of a run: an intake that perceives a feed, or a recording that is read again."""

    @property
    def progress(self) -> Progress: ...
    @property
    def dropped(self) -> dict[str, int]: ...
    @property
    def encodes(self) -> dict[str, int]: ...
    @property
    def stages_ms(self) -> dict[str, dict[str, float]]: ...
    def read(self) -> Iterator[Tick]:
        """Yield every tick with its evidence."""
        ...


class TickPresenter(Protocol):
    """The choice of what is published: a file's readings as they are, live ones as the show wants them."""

    controls: ControlState

    @property
    def speech(self) -> Speech:
        """Settings of narrations, as far as the configuration has them."""
        ...

    def present(self, tick: Tick, progress: Progress, narrating: bool) -> Presented:
        """Return what is published at a tick. ``narrating``: the narrator worked since the last one."""
        ...

    def last_narration(self) -> Sequence[Evidence]:
        """Return the evidence for a narration at the end of a source; empty where none is wanted."""
        ...


@dataclass
class Session:
    """The loop of one run over one source."""

    ticks: TickSource
    presenter: TickPresenter
    publisher: Publisher
    narrator: NarrationMaker
    stop: Stop
    # Of the last tick: its time, and the time of the newest evidence.
    _tick_s: float = 0.0
    _newest_s: float = 0.0
    # The last narration, as ``folded`` returns it; empty where nobody is there to know it.
    _narrated: str = ""

    def run(self, start: Start) -> None:
        """Run until the source ends, a signal comes or a part fails; the sinks get the ``End`` in any case.

        Raises UserError for a source without any reading, and the error of the part that failed.
        """
        began_s, began_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
        failure: BaseException | None = None
        try:
            self.publisher.publish(start)
            for tick in self.ticks.read():
                self._step(tick)
            self._last_narration()
            if not self.publisher.readings and not self.stop.is_set():
                raise UserError(f"no video frame or audio that can be decoded in {start.source}")
            reason = "interrupted" if self.stop.is_set() else "source ended"
        except BaseException as error:
            reason, failure = f"failed: {error}", error
        finally:
            self.narrator.close()
        end = End(
            time_s=round(self._newest_s, 3),
            reason=reason,
            started_at=began_at.isoformat(timespec="seconds"),
            wall_s=round(time.monotonic() - began_s, 3),
            readings=self.publisher.readings,
            narrations=self.publisher.narrations,
            narrations_withheld=dict(self.publisher.withheld),
            encodes=self.ticks.encodes,
            dropped=self.ticks.dropped | self.publisher.dropped | self.presenter.controls.dropped,
            stages_ms=self.ticks.stages_ms | self.publisher.stages_ms,
            deepest=self.publisher.deepest,
        )
        self.publisher.close(end, failure)

    def _step(self, tick: Tick) -> None:
        """Publish the notices, the reading and the narrations of one tick."""
        for notice in tick.arrived.notices:
            self.publisher.publish(notice)
        presented = self.presenter.present(tick, self.ticks.progress, self.narrator.worked)
        for message in presented.messages:
            self.publisher.publish(message)
        if presented.cancel_narration:
            self.narrator.cancel()
            self._narrated = ""
        for evidence in presented.narrate:
            self.narrator.request(evidence, self.presenter.speech, tick.time_s)
        self._publish_narrations()
        self._tick_s, self._newest_s = tick.time_s, presented.newest_s

    def _last_narration(self) -> None:
        """Wait for the narration in the making; a source that had none gets one about its last evidence."""
        evidence = self.presenter.last_narration()
        if not evidence or self.stop.is_set():
            return
        if not self.publisher.narrations and not self.narrator.busy:
            self.narrator.request(evidence[0], self.presenter.speech, self._tick_s)
        self.narrator.wait(LAST_NARRATION_S, self.stop)
        self._publish_narrations()

    def _publish_narrations(self) -> None:
        """Publish the finished narrations, and count what is withheld: also the last narration again."""
        for said in self.narrator.finished():
            if isinstance(said, Withheld):
                self.publisher.withhold(said.reason)
            elif folded(said.text) == self._narrated:
                self.publisher.withhold("repeated")
            else:
                self.publisher.publish(said)
                self._narrated = folded(said.text)
