"""Narrators: make a narration about the newest evidence, beside the session or within its loop.

In: evidence, and how to speak of it. Out: whole sentences, or the reason why there are none. ``Narrator`` has
a thread of its own. Its queue holds one request: a newer request replaces one that waits, and a narration
that has become stale is canceled. ``InLoopNarrator`` answers at once, on a simulated clock. The language
model keeps the prompt's prefix in its KV cache between narrations.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from runtime.clock import Clock
from runtime.machine.stop import Stop
from runtime.mailbox import BoundedQueue, Closed, LatestSlot
from runtime.messages import Narration
from runtime.narration.sentences import whole_sentences
from runtime.narration.speaking import says_enough, speak
from runtime.perception.perception import Evidence
from runtime.perception.predictor import DevicePredictor
from runtime.stage_times import StageTimes
from vaemotion.contract.speech import STANDARD, Speech

STALE_S = 6.0  # a narration about evidence older than this is canceled
FINISHED_LENGTH = 16  # narrations that wait to be published


@dataclass(frozen=True)
class Withheld:
    """A narration that is not published.

    ``reason``: "empty" (the language model said nothing), "cut" (no whole sentence within its tokens that
    does not repeat itself), "no room" (the question leaves none in the context), "stale" or "canceled". The
    session adds "repeated".
    """

    reason: str


def narrate(
    predictor: DevicePredictor,
    evidence: Evidence,
    speech: Speech,
    now_s: Callable[[], float],
    should_abort: Callable[[], bool],
) -> Narration | Withheld:
    """Return whole sentences, decoded greedily from the emotion-enhanced tokens.

    ``speech``: what it sets comes before the bundle's. ``now_s`` is called when the narration is complete,
    ``should_abort`` between tokens; it makes the narration stale.
    """
    speech = speech.over(predictor.constants.speech).over(STANDARD)
    prompt = predictor.prompt(evidence.enhanced, speech.question_text)
    said = speak(predictor, prompt, speech, partial(says_enough, speech), should_abort)
    if said is None:
        return Withheld("no room")
    if said.aborted:
        return Withheld("stale")
    if not said.text:
        return Withheld("empty")
    text = " ".join(whole_sentences(said.text, ended=said.ended)[: speech.sentences])
    if not text:
        return Withheld("cut")
    return Narration(round(now_s(), 3), evidence.reading.time_s, text)


class NarrationMaker(Protocol):
    """The interface between a session and its narrator."""

    @property
    def busy(self) -> bool:
        """A narration is being made, or is requested."""
        ...

    @property
    def worked(self) -> bool:
        """A narration is being made beside the session, or was made since the last call of ``finished``."""
        ...

    def request(self, evidence: Evidence, speech: Speech, now_s: float) -> None:
        """Ask for a narration about ``evidence`` at ``now_s``, the time of the tick."""
        ...

    def cancel(self) -> None:
        """Cancel the narration that is being made."""
        ...

    def finished(self) -> list[Narration | Withheld]:
        """Return what came of the requests that were finished since the last call."""
        ...

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Wait for the narration that is being made, at most ``timeout_s`` and not after a signal."""
        ...

    def close(self) -> None:
        """Cancel the narration that is being made, and release the narrator."""
        ...


class SilentNarrator:
    """Make no narrations, where the predictor has no language model."""

    busy = False
    worked = False

    def request(self, evidence: Evidence, speech: Speech, now_s: float) -> None:
        """Ignore the request."""

    def cancel(self) -> None:
        """Return at once."""

    def finished(self) -> list[Narration | Withheld]:
        """Return nothing."""
        return []

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Return at once."""

    def close(self) -> None:
        """Return at once."""


class InLoopNarrator:
    """Make narrations within the session's loop, at the times of its simulated clock."""

    busy = False
    worked = False

    def __init__(self, predictor: DevicePredictor, times: StageTimes, stop: Stop) -> None:
        """Take the predictor. A signal at ``stop`` ends a narration, which is then not published."""
        self._predictor, self._times, self._stop = predictor, times, stop
        self._finished: list[Narration | Withheld] = []

    def request(self, evidence: Evidence, speech: Speech, now_s: float) -> None:
        """Make a narration now. ``now_s`` stamps it: the clock is ahead of it within a batch of ticks."""
        with self._times.measure("narration"):
            said = narrate(self._predictor, evidence, speech, lambda: now_s, self._stop.is_set)
        if not self._stop.is_set():
            self._finished.append(said)

    def cancel(self) -> None:
        """Return at once: no narration is in the making between two calls."""

    def finished(self) -> list[Narration | Withheld]:
        """Return what came of the requests since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Return at once: no narration is in the making between two calls."""

    def close(self) -> None:
        """Return at once: there is no thread."""


@dataclass(frozen=True, eq=False)
class _Request:
    """A narration that was asked for."""

    evidence: Evidence
    speech: Speech


class Narrator:
    """Make narrations on a thread beside the session. ``finished`` holds them until they are taken."""

    def __init__(self, predictor: DevicePredictor, times: StageTimes, clock: Clock) -> None:
        """Start the thread."""
        self._predictor, self._clock, self._times = predictor, clock, times
        self._requests: LatestSlot[_Request] = LatestSlot()
        self._finished: BoundedQueue[Narration | Withheld] = BoundedQueue(FINISHED_LENGTH, "drop-oldest")
        self._requested: _Request | None = None
        self._answered: _Request | None = None
        self._canceled: _Request | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="narrator", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """A narration is being made, or is requested."""
        return self._requested is not self._answered and self._thread.is_alive()

    @property
    def worked(self) -> bool:
        """A narration is being made, or was made since ``finished`` was last called."""
        return self.busy or len(self._finished) > 0

    def request(self, evidence: Evidence, speech: Speech, now_s: float) -> None:
        """Ask for a narration; never waits. It is stamped when it is complete."""
        self._requested = _Request(evidence, speech)
        self._requests.put(self._requested)

    def cancel(self) -> None:
        """Cancel the narration that is being made."""
        if self.busy:
            self._canceled = self._requested

    def finished(self) -> list[Narration | Withheld]:
        """Return what came of the requests since the last call. Raises the error that ended the thread."""
        return self._finished.take_all()

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Wait for the narration that is being made, at most ``timeout_s`` and not after a signal."""
        deadline_s = self._clock.now_s() + timeout_s
        while self.busy and self._clock.now_s() < deadline_s and not stop.wait(0.02):
            pass

    def close(self) -> None:
        """Cancel the narration that is being made, and end the thread."""
        self._closing.set()
        self._requests.close()
        self._predictor.language_model.abort()
        self._thread.join(timeout=1.5)

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                request = self._requests.take(timeout_s=0.5)
                if request is not None:
                    self._make(request)
        except Closed:
            return
        except BaseException as error:
            self._finished.fail(error)

    def _make(self, request: _Request) -> None:
        about_s = request.evidence.reading.time_s

        def over() -> bool:
            canceled = self._closing.is_set() or self._canceled is request
            return canceled or self._clock.now_s() - about_s > STALE_S

        with self._times.measure("narration"):
            said = narrate(self._predictor, request.evidence, request.speech, self._clock.now_s, over)
        self._finished.put(Withheld("canceled") if self._canceled is request else said)
        self._answered = request
