"""Live devices: a camera and a microphone that come and go, fed to the perception loop like any source.

In: for each device a function that opens it and yields ``Frame`` or ``Sound`` until it raises ``DeviceError``. Out: a ``Feed``. A device that is absent is a
state, not an error: its thread opens it again and again, at most ``LONGEST_PAUSE_S`` apart, for weeks. What it gave before it was lost or froze is never
handed on as live: ``Arrived.lost`` names it.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from runtime.clock import Clock
from runtime.mailbox import Closed, Ring
from runtime.messages import DeviceStatus, Frame, Notice, Sound
from runtime.sources import Arrived, Event
from runtime.stage_times import StageTimes

FIRST_PAUSE_S = 0.1  # before a device is opened again; doubled each time
LONGEST_PAUSE_S = 1.0
FREEZE_S = 0.8  # a device that gave nothing new for so long is frozen
SKEW_SECONDS = 2.0  # of moments that the published skew is the median of
_MAILBOX = 256  # events that wait for the next moment


class DeviceError(Exception):
    """A device cannot be opened, or is gone; the text says why."""


@dataclass(frozen=True)
class Gone:
    """A device was lost, or could not be opened."""

    time_s: float
    reason: str


class Watch:
    """Whether a device is live, told by its evidence alone: no thread, no clock, no device.

    "absent" until the first evidence, "live" while it is younger than ``freeze_s``, "frozen" when it stopped coming, "lost" when the device said so.
    """

    def __init__(self, name: str, freeze_s: float = FREEZE_S) -> None:
        self.name, self.freeze_s = name, freeze_s
        self.state = "absent"
        self.newest_s: float | None = None
        self.losses = 0
        self._told = ""

    def evidence(self, time_s: float) -> None:
        """Something new came, stamped ``time_s``. Evidence that was old when it came makes nothing live."""
        self.newest_s = max(time_s, self.newest_s if self.newest_s is not None else time_s)

    def step(self, now_s: float, gone: Gone | None = None) -> list[Notice]:
        """The state at ``now_s``, and a sentence where it changed. ``gone``: what the device said last, if nothing came after it."""
        if gone is not None:
            state, why = ("absent" if self.newest_s is None else "lost"), f": {gone.reason}"
        elif self.newest_s is None:
            return []
        elif now_s - self.newest_s <= self.freeze_s:
            state, why = "live", ""
        else:  # one that was lost stays lost until it gives something
            state, why = ("lost" if self.state == "lost" else "frozen"), ""
        self.losses += self.state == "live" and state != "live"
        self.state = state
        text = f"{self.name} {state}{why}"
        if text == self._told:
            return []
        self._told = text
        return [Notice(round(now_s, 3), text)]

    def status(self, now_s: float) -> DeviceStatus:
        age_s = None if self.newest_s is None else round(max(0.0, now_s - self.newest_s), 3)
        return DeviceStatus(self.state, age_s, self.losses)


class Device(Protocol):
    """What the feed needs of a device. Everything is called by the perception loop."""

    watch: Watch

    @property
    def dropped(self) -> int: ...
    def take(self, now_s: float) -> tuple[list[Event], bool]:
        """What came since the last call, and whether the device was lost meanwhile, be it back or not."""
        ...

    def close(self) -> None: ...


class Supervised:
    """A device behind a thread that opens it, reads it, and opens it again when it is gone."""

    def __init__(
        self, name: str, stream: Callable[[threading.Event], Iterator[Frame | Sound]], clock: Clock, freeze_s: float = FREEZE_S,
        mailbox: int = _MAILBOX,
    ) -> None:  # fmt: skip
        """``stream``: opens the device and yields what it gives, until the event is set or it raises DeviceError. ``mailbox``: events that wait."""
        self.watch = Watch(name, freeze_s)
        self._stream, self._clock = stream, clock
        self._ring: Ring[Frame | Sound | Gone] = Ring(mailbox, "drop-oldest")
        self._gone: Gone | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._ring.dropped

    def take(self, now_s: float) -> tuple[list[Event], bool]:
        events: list[Event] = []
        interrupted = False
        for event in self._ring.take_all():
            if isinstance(event, Gone):
                self._gone, interrupted = event, True
                events.clear()  # what came before it belongs to the stream that is over
            else:
                self._gone = None
                self.watch.evidence(event.time_s)
                events.append(event)
        return [*events, *self.watch.step(now_s, self._gone)], interrupted

    def close(self) -> None:
        self._closing.set()
        self._ring.close()
        self._thread.join(timeout=2.0)

    def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        try:
            while not self._closing.is_set():
                try:
                    for event in self._stream(self._closing):
                        pause_s = FIRST_PAUSE_S
                        self._ring.put(event)
                    reason = "the stream ended"
                except DeviceError as error:
                    reason = str(error)
                self._ring.put(Gone(self._clock.now_s(), reason))
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except Closed:
            return
        except BaseException as error:  # a defect, not a device: it surfaces in the loop
            self._ring.fail(error)


Role = Literal["camera", "microphone"]


class LiveFeed:
    """A camera, a microphone, or both, as a ``Feed``."""

    def __init__(
        self, devices: dict[Role, Device], clock: Clock, drift_ppm: Callable[[], float | None] = lambda: None
    ) -> None:
        self.devices = devices
        self.times = StageTimes()  # devices decode on their own threads, or in their own hardware
        self._clock, self._drift_ppm = clock, drift_ppm
        self._skews_s: deque[tuple[float, float]] = deque()

    @property
    def dropped(self) -> dict[str, int]:
        return {f"events of the {role}": device.dropped for role, device in self.devices.items()}

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        self._clock.sleep_until(time_s, stop)
        arrived = Arrived()
        for role, device in self.devices.items():
            events, interrupted = device.take(time_s)
            for event in events:
                arrived.add(event)
            if interrupted or device.watch.state != "live":
                arrived.lost.add(role)
        self._measure_skew(time_s)
        return arrived

    def live(self) -> frozenset[str]:
        """The devices that are live."""
        return frozenset(role for role, device in self.devices.items() if device.watch.state == "live")

    def status(self, now_s: float) -> dict[str, DeviceStatus]:
        """By role, for ``Status``."""
        return {role: device.watch.status(now_s) for role, device in self.devices.items()}

    @property
    def drift_ppm(self) -> float | None:
        """By how much the microphone's clock is slow against ours, where it is known."""
        return self._drift_ppm()

    @property
    def skew_ms(self) -> float | None:
        """Newest sound minus newest picture, the median of the last moments; None unless both are live."""
        return 1000 * statistics.median(skew for _, skew in self._skews_s) if self._skews_s else None

    def _measure_skew(self, now_s: float) -> None:
        newest_s = {role: d.watch.newest_s for role, d in self.devices.items() if d.watch.state == "live"}
        sound_s, picture_s = newest_s.get("microphone"), newest_s.get("camera")
        if sound_s is None or picture_s is None:
            self._skews_s.clear()
            return
        self._skews_s.append((now_s, sound_s - picture_s))
        while now_s - self._skews_s[0][0] > SKEW_SECONDS:
            self._skews_s.popleft()

    def close(self) -> None:
        for device in self.devices.values():
            device.close()
