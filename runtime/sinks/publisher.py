"""Publish messages to the outboxes of all sinks, and count readings and narrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.messages import End, Message, Narration, Notice, Reading, Status
from runtime.sinks.outbox import Outbox

# Sinks that show a status also while a file runs: a show and a page watch for the heartbeat.
_WATCHING = ("osc:", "web:")


@dataclass
class Publisher:
    """The outboxes of a run. ``status_to_all``: every sink gets each status, as in a live run."""

    boxes: Sequence[Outbox]
    status_to_all: bool = False
    readings: int = 0
    narrations: int = 0
    # Narrations that were not published, by reason.
    withheld: Counter[str] = field(default_factory=Counter[str])

    def publish(self, message: Message) -> None:
        """Queue a message for every sink; before a status, what a sink could not write.

        Raises the error that made a sink fail.
        """
        self.readings += isinstance(message, Reading)
        self.narrations += isinstance(message, Narration)
        if isinstance(message, Status):
            self._publish_status(message)
            return
        for box in self.boxes:
            box.put(message)

    def _publish_status(self, status: Status) -> None:
        for box in self.boxes:
            if sentence := box.losses.sentence(status.time_s):
                self.publish(Notice(status.time_s, sentence))
        unwritten = {f"messages to {box.name}": n for box in self.boxes if (n := box.losses.count)}
        for box in self.boxes:
            if self.status_to_all or box.name.startswith(_WATCHING):
                lost = status.lost | unwritten
                box.put(replace(status, dropped_messages=box.dropped, lost=lost, **self._narrated))

    def withhold(self, reason: str) -> None:
        """Count a narration that is not published."""
        self.withheld[reason] += 1

    @property
    def _narrated(self) -> dict[str, Any]:
        """The counts of narrations in a status."""
        return {"narrations": self.narrations, "narrations_withheld": dict(self.withheld)}

    @property
    def dropped(self) -> dict[str, int]:
        """Messages dropped, by sink."""
        return {f"messages to {box.name}": box.dropped for box in self.boxes}

    @property
    def deepest(self) -> dict[str, int]:
        """The most messages that ever waited, by sink."""
        return {f"messages to {box.name}": box.deepest for box in self.boxes}

    @property
    def stages_ms(self) -> dict[str, dict[str, float]]:
        """Times of each sink, as in ``End.stages_ms``."""
        return {stage: times for box in self.boxes for stage, times in box.times.summary().items()}

    def close(self, end: End, failure: BaseException | None) -> None:
        """Publish the end and close every sink. Then raise the first failure: ``failure`` or a sink's."""
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
