"""Live devices: a camera and a microphone that come and go, as one feed for the session.

In: for each device a function that opens it and yields ``Frame`` or ``Sound`` until it raises
``DeviceError``. Out: a ``Feed``. An absent device is a state, not an error: its thread opens it again and
again, at most ``LONGEST_PAUSE_S`` apart, for weeks. ``Arrived.lost`` names a device that was lost or froze,
so that its earlier evidence is not taken for live.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from runtime.clock import Clock
from runtime.losses import reason_of
from runtime.mailbox import BoundedQueue, ByteLimit, Closed
from runtime.messages import DeviceStatus, Frame, Notice, Sound
from runtime.sources.feed import Arrived, Event, held_bytes
from runtime.sources.rhythm import Rhythm
from runtime.stage_times import StageTimes
from vaemotion.contract.address import Address

FIRST_PAUSE_S = 0.1  # before a device is opened again; doubled each time
LONGEST_PAUSE_S = 1.0
FREEZE_S = 0.8  # a device without new evidence for longer is frozen
SKEW_SECONDS = 2.0  # the published skew is the median over the ticks of this long
QUEUED_EVENTS = 256  # events that wait for the next tick
QUEUED_BYTES = 64 << 20
NOTICES = 10  # about one device within NOTICES_S; later ones are counted
NOTICES_S = 60.0
NAMELESS = Address("")


class DeviceError(Exception):
    """A device cannot be opened, or was lost; the text gives the reason."""


@dataclass(frozen=True)
class DeviceLoss:
    """The time and the reason at which a device was lost, or could not be opened."""

    time_s: float
    reason: str


class ChangeNotices:
    """Notices of a text that changes: at most ``NOTICES`` within ``NOTICES_S``, and the count of the rest."""

    def __init__(self) -> None:
        self._text, self._untold = "", 0
        self._told_s: deque[float] = deque(maxlen=NOTICES)

    def step(self, now_s: float, text: str) -> list[Notice]:
        """Return the notice that is due at ``now_s``, if any."""
        self._untold += text != self._text
        self._text = text
        full = len(self._told_s) == NOTICES and now_s - self._told_s[0] < NOTICES_S
        if not self._untold or full:
            return []
        more = f" (changes left out before: {self._untold - 1})" if self._untold > 1 else ""
        self._untold = 0
        self._told_s.append(now_s)
        return [Notice(round(now_s, 3), f"{text}{more}")]


class DeviceMonitor:
    """The state of a device, derived from its evidence: no thread, no clock, no device.

    "absent" until the first evidence, "live" while it is younger than ``limit_s``, "frozen" after it stopped
    coming, "lost" after the device reported its loss. ``freeze_s``: the least limit; ``slowest_s``: longest
    time between two pieces of evidence that is believed to be the device's own rate.
    """

    def __init__(self, name: str, freeze_s: float = FREEZE_S, slowest_s: float = 0.0) -> None:
        self.name, self.freeze_s = name, freeze_s
        self.state = "absent"
        self.newest_s: float | None = None
        self.losses = 0
        self._rhythm = Rhythm(slowest_s)
        self._notices = ChangeNotices()

    @property
    def limit_s(self) -> float:
        """Age of the newest evidence from which on the device is frozen: ``freeze_s``, more if it is slow."""
        return self._rhythm.limit_s(self.freeze_s)

    @property
    def interval_s(self) -> float:
        """Longest time that is usual between two pieces of evidence; 0 for a device that may not be slow."""
        return self._rhythm.usual_s

    def add_evidence(self, time_s: float) -> None:
        """Count a new frame or block of sound, stamped ``time_s``. Old evidence makes no device live."""
        self.newest_s = max(time_s, self.newest_s if self.newest_s is not None else time_s)
        self._rhythm.add(time_s)

    def interrupt(self) -> None:
        """Take the time until the next evidence for a loss of the device, not for a pause that it makes."""
        self._rhythm.interrupt()

    def step(self, now_s: float, loss: DeviceLoss | None = None) -> list[Notice]:
        """Update the state at ``now_s``; return a notice if it changed, unless there were too many.

        ``loss``: the device's last report of a loss, unless evidence came after it.
        """
        if loss is not None:
            state, why = ("absent" if self.newest_s is None else "lost"), f": {loss.reason}"
            self.interrupt()
        elif self.newest_s is None:
            return []
        elif now_s - self.newest_s <= self.limit_s:
            state, why = "live", ""
        else:  # a lost device stays lost until new evidence comes
            state, why = ("lost" if self.state == "lost" else "frozen"), ""
        self.losses += self.state == "live" and state != "live"
        self.state = state
        return self._notices.step(now_s, f"{self.name} {state}{why}")

    def status(self, now_s: float) -> DeviceStatus:
        """Return the device's part of a ``Status`` at ``now_s``."""
        age_s = None if self.newest_s is None else round(max(0.0, now_s - self.newest_s), 3)
        return DeviceStatus(self.state, age_s, self.losses)


class Device(Protocol):
    """A device as the feed uses it. The session's thread makes every call."""

    monitor: DeviceMonitor

    @property
    def dropped(self) -> int: ...
    def take(self, now_s: float) -> tuple[list[Event], bool]:
        """Return the events since the last call, and True if the device was lost meanwhile, even if back."""
        ...

    def close(self) -> None: ...


class DeviceThread:
    """A device behind a thread that opens it, reads it, and opens it again after a loss."""

    def __init__(
        self,
        name: str,
        stream: Callable[[threading.Event], Iterator[Frame | Sound]],
        clock: Clock,
        freeze_s: float = FREEZE_S,
        queued_events: int = QUEUED_EVENTS,
        slowest_s: float = 0.0,
        address: Address = NAMELESS,
    ) -> None:
        """Start the thread.

        ``stream`` opens the device and yields its frames or sound until the event is set, or raises
        DeviceError. ``freeze_s``, ``slowest_s``: as the monitor's. ``queued_events``: events that may wait
        for the next tick; older ones are dropped. ``address``: the device's, of which no secret is told.
        """
        self.monitor = DeviceMonitor(name, freeze_s, slowest_s)
        self._stream, self._clock, self._address = stream, clock, address
        self._queue: BoundedQueue[Frame | Sound | DeviceLoss] = BoundedQueue(
            queued_events, "drop-oldest", ByteLimit(QUEUED_BYTES, held_bytes)
        )
        self._loss: DeviceLoss | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of events that waited too long."""
        return self._queue.dropped

    def take(self, now_s: float) -> tuple[list[Event], bool]:
        """Return the events since the last call, and True if the device was lost meanwhile, even if back."""
        events: list[Event] = []
        interrupted = False
        for event in self._queue.take_all():
            if isinstance(event, DeviceLoss):
                self._loss, interrupted = event, True
                self.monitor.interrupt()
                events.clear()  # events before the loss belong to the stream that ended
            else:
                self._loss = None
                self.monitor.add_evidence(event.time_s)
                events.append(event)
        return [*events, *self.monitor.step(now_s, self._loss)], interrupted

    def close(self) -> None:
        """Close the device and end the thread."""
        self._closing.set()
        self._queue.close()
        self._thread.join(timeout=2.0)

    def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closing.is_set():
            reason = "the stream ended"
            try:
                for event in self._stream(self._closing):
                    pause_s = FIRST_PAUSE_S
                    self._queue.put(event)
            except BaseException as error:  # whatever a driver or a library makes of a device: try again
                reason = _reason(error, self._address)
            with contextlib.suppress(Closed, MemoryError):
                self._queue.put(DeviceLoss(self._clock.now_s(), reason))
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _reason(error: BaseException, address: Address) -> str:
    """Return why a device was lost: a device's error in its words, any other with its type; no secret."""
    ours = isinstance(error, DeviceError)

    def hide(text: str) -> str:
        # Our own words, such as "the stream ended", may be part of an address, too.
        return (NAMELESS if ours and address.reveal() not in text else address).hide_in(text)

    return reason_of(error, hide, with_type=not ours)


Role = Literal["camera", "microphone"]


class LiveFeed:
    """A camera, a microphone, or both, as a ``Feed``."""

    def __init__(
        self, devices: dict[Role, Device], clock: Clock, drift_ppm: Callable[[], float | None] = lambda: None
    ) -> None:
        self.devices = devices
        self.times = StageTimes()  # empty: devices decode on their own threads, or in their own hardware
        self._clock, self._drift_ppm = clock, drift_ppm
        self._skews_s: deque[tuple[float, float]] = deque()  # (time, skew) of the last ticks

    @property
    def dropped(self) -> dict[str, int]:
        """Number of dropped events by device."""
        return {f"events of the {role}": device.dropped for role, device in self.devices.items()}

    def until(self, time_s: float, stop: threading.Event) -> Arrived:
        """Wait until ``time_s``, or until ``stop`` is set, and return what arrived since the last call."""
        self._clock.sleep_until(time_s, stop)
        arrived = Arrived()
        for role, device in self.devices.items():
            events, interrupted = device.take(time_s)
            for event in events:
                arrived.add(event)
            if interrupted or device.monitor.state != "live":
                arrived.lost.add(role)
        self._measure_skew(time_s)
        return arrived

    def live(self) -> frozenset[str]:
        """Return the roles of the devices that are live."""
        return frozenset(role for role, device in self.devices.items() if device.monitor.state == "live")

    def status(self, now_s: float) -> dict[str, DeviceStatus]:
        """Return each device's part of a ``Status``, by role."""
        return {role: device.monitor.status(now_s) for role, device in self.devices.items()}

    @property
    def drift_ppm(self) -> float | None:
        """Excess length of the microphone's second over the runtime's, None while unknown."""
        return self._drift_ppm()

    @property
    def skew_ms(self) -> float | None:
        """Newest sound minus newest frame, the median of the last ticks; None unless both are live."""
        return 1000 * statistics.median(skew for _, skew in self._skews_s) if self._skews_s else None

    def _measure_skew(self, now_s: float) -> None:
        monitors = {role: device.monitor for role, device in self.devices.items()}
        newest_s = {role: monitor.newest_s for role, monitor in monitors.items() if monitor.state == "live"}
        sound_s, frame_s = newest_s.get("microphone"), newest_s.get("camera")
        if sound_s is None or frame_s is None:
            self._skews_s.clear()
            return
        self._skews_s.append((now_s, sound_s - frame_s))
        while now_s - self._skews_s[0][0] > SKEW_SECONDS:
            self._skews_s.popleft()

    def close(self) -> None:
        """Close all devices."""
        for device in self.devices.values():
            device.close()
