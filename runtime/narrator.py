"""The narrator: a sentence about the newest evidence, on its own thread beside perception.

Its queue holds one request: a newer one takes the place of one that waits, and a sentence still being made when it has become
stale is cancelled. The language model keeps the prompt's prefix in its KV cache between sentences.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from runtime.clock import Clock
from runtime.mailbox import Closed, LatestSlot, Ring
from runtime.messages import Narration
from runtime.perception import Evidence
from runtime.predictor import DevicePredictor, generate_text
from runtime.stage_times import StageTimes
from vaemotion.contract import prompts

MAX_TOKENS = 40
STALE_S = 6.0  # a sentence about something that long ago is cancelled


def narrate(
    predictor: DevicePredictor,
    evidence: Evidence,
    now_s: Callable[[], float],
    should_abort: Callable[[], bool],
) -> Narration:
    """One sentence, greedily, from the emotion-enhanced tokens. ``now_s``: asked when it is made."""
    prompt = predictor.prompt(evidence.enhanced, prompts.CAPTION.text)
    text, complete = generate_text(predictor, prompt, MAX_TOKENS, should_abort)
    return Narration(round(now_s(), 3), evidence.reading.time_s, text, complete)


class Narrator:
    """Runs ``narrate`` on its own thread. ``finished`` holds what is done until it is taken."""

    def __init__(self, predictor: DevicePredictor, clock: Clock, times: StageTimes) -> None:
        self._predictor, self._clock, self._times = predictor, clock, times
        self._requests: LatestSlot[Evidence] = LatestSlot()
        self._finished: Ring[Narration] = Ring(16, "drop-oldest")
        self._asked: Evidence | None = None
        self._answered: Evidence | None = None
        self._cancelled: Evidence | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="narrator", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """A sentence is being made, or waits to be."""
        return self._asked is not self._answered and self._thread.is_alive()

    @property
    def worked(self) -> bool:
        """A sentence is being made, or was made since ``finished`` was last called."""
        return self.busy or len(self._finished) > 0

    def request(self, evidence: Evidence) -> None:
        """Ask for a sentence; never waits."""
        self._asked = evidence
        self._requests.put(evidence)

    def cancel(self) -> None:
        """What is being made is about something that is over: it ends incomplete."""
        self._cancelled = self._asked

    def finished(self) -> list[Narration]:
        """What was finished since the last call. Raises what made the thread fail."""
        return self._finished.take_all()

    def close(self) -> None:
        """Cancel what runs and end the thread."""
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
