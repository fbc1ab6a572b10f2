"""One run: the loop that asks a feed what came, lets perception encode what is due, and publishes the reading.

In: a ``Feed`` (a file, or live devices), a clock, sinks behind outboxes. Out: messages to every sink, from ``Start`` to ``End``.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.agenda import Agenda
from runtime.clock import Clock
from runtime.controls import Desk
from runtime.installation import Installation
from runtime.keep_media import MediaKeeper
from runtime.messages import End, Frame, Message, Narration, Notice, Start
from runtime.moments import Moment, encode, read
from runtime.narrator import Narrator, narrate
from runtime.perception import Evidence, Perception
from runtime.predictor import DevicePredictor
from runtime.preview import Preview
from runtime.recording import FeatureRecorder
from runtime.sinks.outbox import Outbox
from runtime.sources import Arrived, Feed
from runtime.stop import Stop
from vaemotion.contract.errors import UserError
from vaemotion.contract.windows import WindowConfig

COMPLAINT_S = 5.0  # between two notices of dropped moments
LAST_NARRATION_S = 5.0  # at the end of a source, how long a sentence that is being made is waited for


@dataclass
class Session:
    """One run over one feed. ``run`` is the loop.

    ``pace``: "max" on a simulated clock, where the narrator runs within the loop; "real" as on live devices. ``installation``: what only a live run has.
    ``recorded``: evidence that is read again instead of perceived (``runtime.recording``). ``schedule``: when something is due, the bundle's own grid unless a rehearsal wants fewer moments.
    ``at_once``: moments that are computed in one batch, more than one where the clock is simulated: nobody waits for the first of them.
    """

    predictor: DevicePredictor
    feed: Feed
    clock: Clock
    boxes: Sequence[Outbox]
    stop: Stop
    pace: str
    narrate_every_s: float
    has_frames: bool = True
    has_sound: bool = True
    desk: Desk = field(default_factory=Desk)
    installation: Installation | None = None
    recorder: FeatureRecorder | None = None
    preview: Preview | None = None
    keeper: MediaKeeper | None = None
    schedule: WindowConfig | None = None
    at_once: int = 1
    recorded: Callable[[Perception], Iterator[Evidence]] | None = None
    readings: int = 0
    narrations: int = 0
    moments: int = 0
    skipped: int = 0
    _next_complaint_s: float = 0.0
    _picture: Frame | None = None
    _encoded: Frame | None = None
    _unheard: bool = False

    def run(self, start: Start) -> None:
        """Until the source ends, a signal comes or something fails; the timeline's end is written in any case."""
        began_s, began_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
        perception = Perception(self.predictor, self.recorder)
        narrator = Narrator(self.predictor, self.clock, perception.times) if self.pace == "real" else None
        reason, now_s = "source ended", 0.0
        failure: BaseException | None = None
        try:
            self.publish(start)
            moments = (
                self._moments(perception, narrator) if self.recorded is None else self._again(perception)
            )
            for now_s in moments:  # noqa: B007 - the last one is the end's
                pass
            reason = "interrupted" if self.stop.is_set() else reason
            if not self.readings and not self.stop.is_set():
                raise UserError(f"{start.source} holds neither pictures nor sound that can be decoded")
        except BaseException as error:
            reason, failure = f"failed: {error}", error
        finally:
            if narrator is not None:
                narrator.close()
        dropped = {**self.feed.dropped, "moments": self.skipped}
        dropped |= {f"messages to {box.name}": box.dropped for box in self.boxes} | self.desk.dropped
        end = End(
            round(now_s, 3), reason, began_at.isoformat(timespec="seconds"), round(time.monotonic() - began_s, 3),
            self.readings, self.narrations, perception.encodes, dropped, self._stages(perception),
            {f"messages to {box.name}": box.deepest for box in self.boxes},
        )  # fmt: skip
        self._close(end, failure)

    def _stages(self, perception: Perception) -> dict[str, dict[str, float]]:
        """From the source to the sinks, what each stage took."""
        stages = self.feed.times.summary() | perception.times.summary()
        for box in self.boxes:
            stages |= box.times.summary()
        return stages

    def _moments(self, perception: Perception, narrator: Narrator | None) -> Generator[float]:
        """The loop: one pass per moment at which something is due. Yields the moment's time."""
        agenda = Agenda(self._windows, has_frames=self.has_frames, has_sound=self.has_sound)
        evidence, now_s = None, 0.0
        next_narration_s = self.narrate_every_s or float("inf")
        for moment in self._read_moments(perception, agenda):
            for notice in moment.arrived.notices:
                self.publish(notice)
            seen = moment.evidence
            evidence = seen or evidence
            now_s = moment.time_s
            narrate_now = self._show(perception, moment, seen, narrator)
            if self.installation is None and evidence is not None and now_s >= next_narration_s - 1e-6:
                next_narration_s += self.narrate_every_s
                narrate_now = True
            if narrate_now and evidence is not None:
                self._ask_for_narration(perception, narrator, evidence, now_s)
            if narrator is not None:
                self._publish_narrations(narrator)
            yield evidence.reading.time_s if evidence is not None else now_s
        if evidence is not None and self.narrate_every_s and not self.stop.is_set():
            self._last_words(perception, narrator, evidence, now_s)

    @property
    def _windows(self) -> WindowConfig:
        return self.schedule or self.predictor.constants.front_end.windows

    def _read_moments(self, perception: Perception, agenda: Agenda) -> Iterator[Moment]:
        """Every moment with its reading, ``at_once`` of them computed in one batch."""
        while moments := self._next_moments(perception, agenda):
            encode(perception, moments)
            read(perception, moments)
            yield from moments

    def _next_moments(self, perception: Perception, agenda: Agenda) -> list[Moment]:
        """Wait for the next moments, and prepare what is due at them; none when everything is over."""
        moments: list[Moment] = []
        while len(moments) < self.at_once and (moment_s := agenda.next_s()) is not None:
            if self.clock.now_s() - moment_s > 2 * self._windows.frame_hop_s:
                self._skip(agenda)
                moment_s = agenda.next_s() or moment_s
            arrived = self.feed.until(moment_s, self.stop)
            if self.stop.is_set():
                return []
            self.moments += 1
            self._keep(arrived, moment_s)
            self._attend(moment_s)
            moments.append(self._taken_in(perception, agenda, moment_s, arrived))
        return moments

    def _taken_in(self, perception: Perception, agenda: Agenda, moment_s: float, arrived: Arrived) -> Moment:
        """What came until a moment, prepared for the encoders where it is due."""
        self._forget(perception, arrived)
        if (sound := arrived.heard()) is not None:
            self._unheard = True
            deaf = self.desk.deaf
            perception.listen(replace(sound, samples=np.zeros_like(sound.samples)) if deaf else sound)
        if arrived.frame is not None:
            self._picture = arrived.frame
        if self.preview is not None:
            self.preview.newest = self._picture
        due = agenda.due(moment_s, arrived.frames_end_s, arrived.sound_end_s)
        moment = Moment(moment_s, arrived, due.picture is not None or due.sound)
        if due.picture is not None and self._picture is not None:
            moment.index = due.picture * self._grid_points
            self._look(perception, self._picture, moment)
        if due.sound and self._unheard and not self.desk.deaf:
            moment.heard_s, log_mel = perception.newest_window()
            moment.log_mel = log_mel if self.at_once == 1 else log_mel.copy()
            self._unheard = False
        if self.at_once > 1:
            # Moments that wait for their batch keep no decoded picture, which may be large.
            arrived.frame = None
        return moment

    def _again(self, perception: Perception) -> Generator[float]:
        """What was recorded, read again."""
        assert self.recorded is not None
        for evidence in self.recorded(perception):
            if self.stop.is_set():
                return
            self.readings += 1
            self.publish(evidence.reading)
            yield evidence.reading.time_s

    def _attend(self, now_s: float) -> None:
        """Between two readings: obey the show's controls, and tell its sinks once a second that we are alive."""
        for notice in self.desk.obey(now_s):
            self.publish(notice)
        if self.installation is not None and self.stop.reload.is_set():
            self.stop.reload.clear()
            self.publish(self.installation.read_again(now_s))
        status = self.desk.status(now_s, self.readings, self.skipped)
        if status is None:
            return
        status = replace(status, narrator="on" if self.narrate_every_s else "off")
        if self.installation is not None:
            status = self.installation.complete(status, now_s, self.moments)
        for box in self.boxes:
            if self.installation is not None or box.name.startswith(("osc:", "web:")):
                box.put(replace(status, dropped_messages=box.dropped))

    def _keep(self, arrived: Arrived, now_s: float) -> None:
        """Where the operator asked for it: what came, written down."""
        if self.keeper is None:
            return
        self.keeper.take(arrived)
        if self.keeper.failure is not None:
            self.publish(Notice(round(now_s, 3), self.keeper.failure))
            self.keeper = None

    def _skip(self, agenda: Agenda) -> None:
        """This machine is behind: go on with what is due now, and say so, at most every few seconds."""
        now_s = self.clock.now_s()
        self.skipped += agenda.skip_to(now_s)
        if now_s >= self._next_complaint_s:
            self._next_complaint_s = now_s + COMPLAINT_S
            self.publish(Notice(round(now_s, 3), f"too slow: {self.skipped} moments dropped so far"))

    @property
    def _grid_points(self) -> int:
        """Grid points of the bundle per picture of the schedule."""
        if self.schedule is None:
            return 1
        return round(self.schedule.frame_hop_s / self.predictor.constants.front_end.windows.frame_hop_s)

    def _look(self, perception: Perception, picture: Frame, moment: Moment) -> None:
        """Prepare the picture for its grid point, unless it was seen already."""
        if picture is self._encoded:
            return
        self._encoded = picture
        with perception.times.measure("convert picture"):
            seen = picture.picture()
        if self.installation is not None:
            moment.taken_s = picture.time_s
            if self.installation.cuts(seen):
                perception.forget_pictures()  # those before the cut say nothing of what is shown now
        moment.pixels = perception.prepare(seen)

    def _forget(self, perception: Perception, arrived: Arrived) -> None:
        """What a device gave before it was lost or froze is not seen and heard now."""
        if "camera" in arrived.lost:
            perception.forget_pictures()
            self._picture = None
        if "microphone" in arrived.lost:
            perception.forget_sound()

    def _show(
        self, perception: Perception, moment: Moment, evidence: Evidence | None, narrator: Narrator | None
    ) -> bool:
        """Publish the reading: of a file as it is, of live devices as the show wants it. True: a show's narration is due."""
        reading, narrate_now = None if evidence is None else evidence.reading, False
        if self.installation is not None:
            busy = narrator is not None and narrator.busy
            shown = self.installation.step(
                moment.time_s,
                reading,
                moment.arrived,
                perception.newest_s,
                self.skipped,
                muted=self.desk.muted,
                narrating=narrator is not None and narrator.worked,
            )
            for notice in shown.notices:
                self.publish(notice)
            if busy and narrator is not None and shown.state in ("empty", "muted"):
                narrator.cancel()
            reading, narrate_now = shown.reading, shown.narrate
        elif reading is not None and self.pace != "max":
            reading = replace(reading, latency_ms=round((self.clock.now_s() - reading.time_s) * 1000, 1))
        if reading is not None:
            self.readings += 1
            self.publish(reading)
        return narrate_now

    def _ask_for_narration(
        self, perception: Perception, narrator: Narrator | None, evidence: Evidence, now_s: float
    ) -> None:
        """At ``now_s``, the moment's own time: the clock is ahead of it where several were taken in at once."""
        if narrator is not None:
            narrator.request(evidence)
            return
        with perception.times.measure("narration"):
            narration = narrate(self.predictor, evidence, lambda: now_s, self.stop.is_set)
        if not self.stop.is_set():
            self._tell(narration)

    def _last_words(
        self, perception: Perception, narrator: Narrator | None, evidence: Evidence, now_s: float
    ) -> None:
        """A source too short for a narration gets one; one that is being made is waited for."""
        if not self.narrations and (narrator is None or not narrator.busy):
            self._ask_for_narration(perception, narrator, evidence, now_s)
        if narrator is not None:
            deadline_s = self.clock.now_s() + LAST_NARRATION_S
            while narrator.busy and self.clock.now_s() < deadline_s and not self.stop.wait(0.02):
                pass
            self._publish_narrations(narrator)

    def _publish_narrations(self, narrator: Narrator) -> None:
        for narration in narrator.finished():
            self._tell(narration)

    def _tell(self, narration: Narration) -> None:
        self.narrations += 1
        self.publish(narration)

    def publish(self, message: Message) -> None:
        """To every sink's queue. Raises what made a sink fail."""
        for box in self.boxes:
            box.put(message)

    def _close(self, end: End, failure: BaseException | None) -> None:
        """Tell every sink the end; the first failure is raised when all are closed."""
        for box in self.boxes:
            try:
                box.put(end)
            except BaseException as error:
                failure = failure or error
        for box in self.boxes:
            try:
                box.close()
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure
