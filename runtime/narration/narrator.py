"""Narrators: make a sentence about the newest evidence, beside the session or within its loop.

``Narrator`` has a thread of its own. Its queue holds one request: a newer request replaces one that
waits, and a sentence that has become stale is cancelled. ``InLoopNarrator`` answers at once, on a
simulated clock. The language model keeps the prompt's prefix in its KV cache between sentences.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from runtime.clock import Clock
from runtime.machine.stop import Stop
from runtime.mailbox import BoundedQueue, Closed, LatestSlot
from runtime.messages import Narration
from runtime.perception.perception import Evidence
from runtime.perception.predictor import DevicePredictor, generate_text
from runtime.stage_times import StageTimes
from vaemotion.contract import prompts

MAX_TOKENS = 40
STALE_S = 6.0  # a sentence about evidence older than this is cancelled
FINISHED_LENGTH = 16  # sentences that wait to be published


def narrate(
    predictor: DevicePredictor,
    evidence: Evidence,
    now_s: Callable[[], float],
    should_abort: Callable[[], bool],
) -> Narration:
    """Return one sentence, decoded greedily from the emotion-enhanced tokens.

    ``now_s`` is called when the sentence is complete, ``should_abort`` between tokens.
    """
    prompt = predictor.prompt(evidence.enhanced, prompts.CAPTION.text)
    text, complete = generate_text(predictor, prompt, MAX_TOKENS, should_abort)
    return Narration(round(now_s(), 3), evidence.reading.time_s, text, complete)


class NarrationMaker(Protocol):
    """The interface between a session and its narrator."""

    @property
    def busy(self) -> bool:
        """A sentence is being made, or is requested."""
        ...

    @property
    def worked(self) -> bool:
        """A sentence is being made beside the session, or was made since ``finished`` was last called."""
        ...

    def request(self, evidence: Evidence, now_s: float) -> None:
        """Ask for a sentence about ``evidence`` at ``now_s``, the time of the tick."""
        ...

    def cancel(self) -> None:
        """Cancel the sentence that is being made: it ends incomplete."""
        ...

    def finished(self) -> list[Narration]:
        """Return the sentences that were finished since the last call."""
        ...

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Wait for the sentence that is being made, at most ``timeout_s`` and not after a signal."""
        ...

    def close(self) -> None:
        """Cancel the sentence that is being made, and release the narrator."""
        ...


class SilentNarrator:
    """Make no sentences, where the predictor has no language model."""

    busy = False
    worked = False

    def request(self, evidence: Evidence, now_s: float) -> None:
        """Ignore the request."""

    def cancel(self) -> None:
        """Return at once."""

    def finished(self) -> list[Narration]:
        """Return no sentence."""
        return []

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Return at once."""

    def close(self) -> None:
        """Return at once."""


class InLoopNarrator:
    """Make sentences within the session's loop, at the times of its simulated clock."""

    busy = False
    worked = False

    def __init__(self, predictor: DevicePredictor, times: StageTimes, stop: Stop) -> None:
        """Take the predictor. A signal at ``stop`` ends a sentence, which is then not published."""
        self._predictor, self._times, self._stop = predictor, times, stop
        self._finished: list[Narration] = []

    def request(self, evidence: Evidence, now_s: float) -> None:
        """Make a sentence now. ``now_s`` stamps it: the clock is ahead of it within a batch of ticks."""
        with self._times.measure("narration"):
            narration = narrate(self._predictor, evidence, lambda: now_s, self._stop.is_set)
        if not self._stop.is_set():
            self._finished.append(narration)

    def cancel(self) -> None:
        """Return at once: no sentence is in the making between two calls."""

    def finished(self) -> list[Narration]:
        """Return the sentences since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Return at once: no sentence is in the making between two calls."""

    def close(self) -> None:
        """Return at once: there is no thread."""


class Narrator:
    """Make sentences on a thread beside the session. ``finished`` holds them until they are taken."""

    def __init__(self, predictor: DevicePredictor, times: StageTimes, clock: Clock) -> None:
        """Start the thread."""
        self._predictor, self._clock, self._times = predictor, clock, times
        self._requests: LatestSlot[Evidence] = LatestSlot()
        self._finished: BoundedQueue[Narration] = BoundedQueue(FINISHED_LENGTH, "drop-oldest")
        self._requested: Evidence | None = None
        self._answered: Evidence | None = None
        self._cancelled: Evidence | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="narrator", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """A sentence is being made, or is requested."""
        return self._requested is not self._answered and self._thread.is_alive()

    @property
    def worked(self) -> bool:
        """A sentence is being made, or was made since ``finished`` was last called."""
        return self.busy or len(self._finished) > 0

    def request(self, evidence: Evidence, now_s: float) -> None:
        """Ask for a sentence; never waits. It is stamped when it is complete."""
        self._requested = evidence
        self._requests.put(evidence)

    def cancel(self) -> None:
        """Cancel the sentence that is being made: it ends incomplete."""
        if self.busy:
            self._cancelled = self._requested

    def finished(self) -> list[Narration]:
        """Return the sentences since the last call. Raises the error that ended the thread."""
        return self._finished.take_all()

    def wait(self, timeout_s: float, stop: Stop) -> None:
        """Wait for the sentence that is being made, at most ``timeout_s`` and not after a signal."""
        deadline_s = self._clock.now_s() + timeout_s
        while self.busy and self._clock.now_s() < deadline_s and not stop.wait(0.02):
            pass

    def close(self) -> None:
        """Cancel the sentence that is being made, and end the thread."""
        self._closing.set()
        self._requests.close()
        self._predictor.language_model.abort()
        self._thread.join(timeout=1.5)

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                evidence = self._requests.take(timeout_s=0.5)
                if evidence is not None:
                    self._make(evidence)
        except Closed:
            return
        except BaseException as error:
            self._finished.fail(error)

    def _make(self, evidence: Evidence) -> None:
        def stale() -> bool:
            over = self._closing.is_set() or self._cancelled is evidence
            return over or self._clock.now_s() - evidence.reading.time_s > STALE_S

        with self._times.measure("narration"):
            narration = narrate(self._predictor, evidence, self._clock.now_s, stale)
        self._finished.put(narration)
        self._answered = evidence
