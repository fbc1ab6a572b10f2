"""The wiring of the runtime: read this file and you know it.

    source → feed → perception (pictures and sound become tokens once) → reading → outboxes → sinks
                                             └→ narrator, beside it    → narration ┘

One loop, one clock. At ``--pace max`` the clock is simulated, the narrator runs within the loop at fixed media times and nothing is ever
dropped: the same file gives the same readings and narrations. At ``--pace real`` everything runs as on live devices.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from runtime.agenda import Agenda
from runtime.clock import Clock, ManualClock, MonotonicClock
from runtime.controls import Controls, Desk
from runtime.messages import End, Frame, Message, Narration, Notice, Start
from runtime.narrator import Narrator, narrate
from runtime.perception import Evidence, Perception
from runtime.predictor import DevicePredictor, open_predictor
from runtime.sinks.console import open_console
from runtime.sinks.jsonl import JsonLines
from runtime.sinks.osc import OscSink, parse_endpoint
from runtime.sinks.outbox import Outbox
from runtime.sources import Arrived, Feed, FileSource, Paced, Replay
from vaemotion.contract.bundle import MANIFEST_FILE, read_manifest, sha256_of
from vaemotion.contract.errors import UsageError, UserError

PACES = ("real", "max")
COMPLAINT_S = 5.0  # between two notices of dropped moments
LAST_NARRATION_S = 5.0  # at the end of a source, how long a sentence that is being made is waited for


def run(
    bundle: Path, source: Path, outs: Sequence[str], pace: str, narrate_every_s: float, threads: int | None,
    osc_in: str | None = None,
) -> int:  # fmt: skip
    """``vaemotion run``: stream a file through a bundle. Returns the exit code: 0, or 128 + the signal that ended it."""
    if pace not in PACES:
        raise UsageError(f"--pace must be one of {', '.join(PACES)}, got {pace!r}")
    if narrate_every_s < 0:
        raise UsageError(f"--narrate-every must be 0 (never) or positive seconds, got {narrate_every_s}")
    sinks = [_parse_out(out) for out in outs or ["console"]]
    listen_at = parse_endpoint(osc_in, "--osc-in", "127.0.0.1") if osc_in is not None else None
    file = FileSource(source)
    with _signals() as stop, open_predictor(bundle, threads=threads or default_threads()) as predictor:
        start = describe(bundle, source, pace, predictor)
        clock: Clock = ManualClock() if pace == "max" else MonotonicClock()
        feed: Feed = Replay(file, clock) if pace == "max" else Paced(file, clock)
        with contextlib.ExitStack() as closing:
            closing.callback(feed.close)
            controls = closing.enter_context(contextlib.closing(Controls(*listen_at))) if listen_at else None
            boxes = [
                Outbox(name, make(), "wait" if pace == "max" else "drop-oldest", stop) for name, make in sinks
            ]
            desk = Desk(controls)
            Session(predictor, file, feed, clock, boxes, stop, narrate_every_s, pace, desk).run(start)
        return 128 + stop.signal if stop.signal else 0


def default_threads() -> int:
    """All processors that this process may use, at most 4: small models gain nothing from more."""
    return min(4, len(os.sched_getaffinity(0)))


def _parse_out(out: str) -> tuple[str, Any]:
    """A name and what makes the sink; nothing is opened before everything else is known to be right."""
    kind, _, target = out.partition(":")
    if kind == "console" and not target:
        return out, open_console
    if kind == "jsonl" and target:
        return out, lambda: JsonLines(target)
    if kind == "osc":
        host, port = parse_endpoint(target, "--out osc:")
        return out, lambda: OscSink(host, port)
    raise UsageError(
        f"--out takes console, jsonl:FILE, jsonl:- (standard output) or osc:HOST:PORT, got {out!r}"
    )


def describe(bundle: Path, source: Path, pace: str, predictor: DevicePredictor) -> Start:
    """The first message of a run."""
    manifest = read_manifest(bundle)
    engines = [getattr(engine, "announcement", role) for role, engine in predictor.engines.items()]
    language_model = manifest.component("language_model")
    return Start(
        manifest.name, sha256_of(bundle / MANIFEST_FILE), source.name, pace,
        (*engines, f"{language_model.label}: llama.cpp on the CPU"), manifest.lineage, version("vaemotion"),
    )  # fmt: skip


class Stop(threading.Event):
    """Set by SIGINT and SIGTERM; ``signal`` says which, 0 while none came."""

    signal = 0


@contextlib.contextmanager
def _signals() -> Generator[Stop]:
    """The first signal asks the loop to end; a second one ends the process at once."""
    stop = Stop()

    def handle(number: int, _: object) -> None:
        stop.signal = number
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class Session:
    """One run over one source. ``run`` is the loop."""

    predictor: DevicePredictor
    source: FileSource
    feed: Feed
    clock: Clock
    boxes: Sequence[Outbox]
    stop: threading.Event
    narrate_every_s: float
    pace: str
    desk: Desk = field(default_factory=Desk)
    readings: int = 0
    narrations: int = 0
    skipped: int = 0
    next_complaint_s: float = 0.0

    def run(self, start: Start) -> None:
        """Until the source ends, a signal comes or something fails; the timeline's end is written in any case."""
        began_s, began_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
        perception = Perception(self.predictor)
        narrator = Narrator(self.predictor, self.clock, perception.times) if self.pace == "real" else None
        reason, now_s = "source ended", 0.0
        failure: BaseException | None = None
        try:
            self.publish(start)
            for now_s in self._moments(perception, narrator):  # noqa: B007 - the last one is the end's
                pass
            reason = "interrupted" if self.stop.is_set() else reason
            if not self.readings and not self.stop.is_set():
                raise UserError(f"{self.source.path} holds neither pictures nor sound that can be decoded")
        except BaseException as error:
            reason, failure = f"failed: {error}", error
        finally:
            if narrator is not None:
                narrator.close()
        dropped = {**self.feed.dropped, "moments": self.skipped}
        dropped |= {f"messages to {box.name}": box.dropped for box in self.boxes} | self.desk.dropped
        end = End(
            round(now_s, 3), reason, began_at.isoformat(timespec="seconds"), round(time.monotonic() - began_s, 3),
            self.readings, self.narrations, perception.encodes, dropped, perception.times.summary(),
        )  # fmt: skip
        self._close(end, failure)

    def _moments(self, perception: Perception, narrator: Narrator | None) -> Generator[float]:
        """The loop: one pass per moment at which something is due. Yields the moment's time."""
        windows = self.predictor.constants.front_end.windows
        agenda = Agenda(windows, has_frames=self.source.has_frames, has_sound=self.source.has_sound)
        picture: Frame | None = None
        evidence: Evidence | None = None
        next_narration_s = self.narrate_every_s or float("inf")
        while not self.stop.is_set() and (moment_s := agenda.next_s()) is not None:
            if self.clock.now_s() - moment_s > 2 * windows.frame_hop_s:
                self._skip(agenda)
                moment_s = agenda.next_s() or moment_s
            arrived = self.feed.until(moment_s, self.stop)
            if self.stop.is_set():
                break
            self._attend(moment_s)
            picture = arrived.frame or picture
            evidence = self._perceive(perception, agenda, moment_s, arrived, picture) or evidence
            if evidence is not None and moment_s >= next_narration_s - 1e-6:
                next_narration_s += self.narrate_every_s
                self._ask_for_narration(perception, narrator, evidence)
            if narrator is not None:
                self._publish_narrations(narrator)
            yield evidence.reading.time_s if evidence is not None else moment_s
        if evidence is not None and self.narrate_every_s and not self.stop.is_set():
            self._last_words(perception, narrator, evidence)

    def _attend(self, now_s: float) -> None:
        """Between two readings: obey the show's controls, and tell its sinks once a second that we are alive."""
        for notice in self.desk.obey(now_s):
            self.publish(notice)
        status = self.desk.status(now_s, self.readings, self.skipped)
        for box in self.boxes:
            if status is not None and box.name.startswith("osc:"):
                box.put(replace(status, dropped_messages=box.dropped))

    def _skip(self, agenda: Agenda) -> None:
        """This machine is behind: go on with what is due now, and say so, at most every few seconds."""
        now_s = self.clock.now_s()
        self.skipped += agenda.skip_to(now_s)
        if now_s >= self.next_complaint_s:
            self.next_complaint_s = now_s + COMPLAINT_S
            self.publish(Notice(round(now_s, 3), f"too slow: {self.skipped} moments dropped so far"))

    def _perceive(
        self, perception: Perception, agenda: Agenda, moment_s: float, arrived: Arrived, picture: Frame | None
    ) -> Evidence | None:
        """Encode what is due and publish the reading."""
        for notice in arrived.notices:
            self.publish(notice)
        for sound in arrived.sound:
            deaf = self.desk.deaf
            perception.listen(replace(sound, samples=np.zeros_like(sound.samples)) if deaf else sound)
        due = agenda.due(moment_s, arrived.frames_end_s, arrived.sound_end_s)
        if due.picture is not None and picture is not None:
            perception.see(picture.picture(), due.picture)
        if due.sound and not self.desk.deaf:
            perception.hear()
        if due.picture is None and not due.sound:
            return None
        now_s = arrived.now_s(moment_s)
        evidence = perception.read(now_s)
        if evidence is not None:
            self.readings += 1
            latency_ms = None if self.pace == "max" else round((self.clock.now_s() - now_s) * 1000, 1)
            self.publish(replace(evidence.reading, latency_ms=latency_ms))
        return evidence

    def _ask_for_narration(
        self, perception: Perception, narrator: Narrator | None, evidence: Evidence
    ) -> None:
        if narrator is not None:
            narrator.request(evidence)
            return
        with perception.times.measure("narration"):
            narration = narrate(self.predictor, evidence, self.clock, self.stop.is_set)
        if not self.stop.is_set():
            self._tell(narration)

    def _last_words(self, perception: Perception, narrator: Narrator | None, evidence: Evidence) -> None:
        """A source too short for a narration gets one; one that is being made is waited for."""
        if not self.narrations and (narrator is None or not narrator.busy):
            self._ask_for_narration(perception, narrator, evidence)
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
