"""A simulated camera and microphone for soaks: recordings come out of them as from devices, and fail as a schedule says.

In: recordings, faults, a seed, and the time at each call. Out: what ``runtime.live.Device`` promises. There are no threads and no waiting: the
same seed gives the same events. Each device keeps the truth about itself beside what it gives (``Truth``), for whoever judges the runtime.

Simulated is what lies outside the process: when a picture or a block of samples was taken, when it came, and when nothing did. The
camera's pictures go through the runtime's own ``Freshness``, the microphone's samples through its own ``Track`` with its ``SampleClock``; loss and freeze
are told by its own ``Watch``.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.camera import Freshness
from runtime.faults import GONE, SKEW_PPM, Fault, Lane
from runtime.live import DeviceError, Gone, Watch
from runtime.messages import Frame, Sound
from runtime.microphone import SILENT_S, Block, Track
from runtime.soak_media import PICTURES_HZ, Recording
from runtime.sources import Event
from vaemotion.contract.audio import SAMPLE_RATE_HZ

BLOCK_SAMPLES = 640  # of one callback, 40 ms: a real one's are 10 ms, and cost four times as much
JITTER_S = 0.002  # mean delay of a callback
LATEST_S = 0.06  # delay of a late callback, at most
_NOISES = 31  # pictures of a sensor's noise; a prime, so that no two pictures in a row have the same
SETTLED_S = 3.0  # after a stream has begun, when its clock is judged
# From a device's return to what it gives first: the runtime's back-off and the opening, which takes up to 2.2 s on a real microphone.
CAMERA_BACK_S, MICROPHONE_BACK_S = (0.1, 1.5), (0.3, 3.2)


class Truth:
    """When a device really gave something new, as intervals. Written by the loop, read by any thread."""

    def __init__(self) -> None:
        self._begins_s: list[float] = []
        self._ends_s: list[float] = []
        self._whole = False

    def add(self, time_s: float) -> None:
        if self._whole:
            self._ends_s[-1] = time_s
        else:
            self._ends_s.append(time_s)
            self._begins_s.append(time_s)
            self._whole = True

    def cut(self) -> None:
        """The stream has ended."""
        self._whole = False

    def newest_s(self, now_s: float) -> float | None:
        """Time of the newest evidence at or before ``now_s``, None where there was none yet. Within an unbroken stream that is ``now_s``."""
        position = bisect_right(self._begins_s, now_s) - 1
        return None if position < 0 else min(self._ends_s[position], now_s)


@dataclass(frozen=True)
class _Outage:
    """Nothing new comes from ``start_s`` until ``back_s``. ``noticed_s``: when whoever reads the device says that it is gone."""

    start_s: float
    noticed_s: float
    back_s: float
    reason: str


def _outages(faults: Sequence[Fault], back_s: tuple[float, float], seed: str) -> list[_Outage]:
    """``back_s``: from the end of a fault to what comes first, between these."""
    chance = random.Random(seed)
    found: list[_Outage] = []
    for fault in faults:
        if fault.kind not in GONE:
            continue
        noticed_s, reason = fault.start_s, "no such device"
        if fault.kind.endswith("frozen"):
            noticed_s, reason = fault.start_s + SILENT_S, f"it gave nothing for {SILENT_S:g} s"
        opened_s = max(noticed_s, fault.end_s) + chance.uniform(*back_s)
        found.append(_Outage(fault.start_s, noticed_s, opened_s, reason))
    return found


class _Connection:
    """Whether a device's stream runs. One reader, whose time only goes on."""

    def __init__(self, outages: list[_Outage]) -> None:
        self._outages = outages
        self._next = 0
        self._told: _Outage | None = None
        self.began_s = 0.0  # of the stream that runs, or ran last

    def at(self, now_s: float) -> tuple[_Outage | None, bool]:
        """The outage at ``now_s``, and whether it was noticed since the last call."""
        while self._next < len(self._outages) and self._outages[self._next].back_s <= now_s:
            self.began_s = self._outages[self._next].back_s
            self._next += 1
        outage = self._outages[self._next] if self._next < len(self._outages) else None
        if outage is None or now_s < outage.start_s:
            return None, False
        news = now_s >= outage.noticed_s and outage is not self._told
        self._told = outage if news else self._told
        return outage, news


class SimulatedCamera:
    """A camera whose pictures go through the runtime's own ``Freshness``: a frozen one sends its last picture again and again."""

    def __init__(self, recording: Recording, faults: Sequence[Fault], seed: int) -> None:
        self.watch, self.truth = Watch("camera"), Truth()
        self.dropped = 0
        self._pictures = recording.pictures
        self._lane = Lane(faults, "camera")
        gone = [fault for fault in self._lane.faults if fault.kind in GONE]
        unplugged = [fault for fault in gone if fault.kind != "camera frozen"]
        self.outages = len(gone)
        self._connection = _Connection(_outages(unplugged, CAMERA_BACK_S, f"camera {seed}"))
        self._chance = random.Random(seed)
        # the sensor's noise: no two pictures are the same, and black is never quite black
        sensor = np.random.default_rng(seed)
        self._noise = sensor.integers(0, 2, (_NOISES, *recording.pictures.shape[1:]), np.uint8)
        self._next = 0  # picture since the run began
        self._opens_s = 0.0
        self._freshness: Freshness | None = None
        self._gone: Gone | None = None
        self._seen = self._noise[0]

    def take(self, now_s: float) -> tuple[list[Event], bool]:
        outage, interrupted = self._connection.at(now_s)
        if outage is not None and now_s >= outage.noticed_s:
            self._gone = Gone(outage.noticed_s, outage.reason)
        events: list[Event] = []
        for index in range(self._next, int(now_s * PICTURES_HZ + 1e-6) + 1):
            time_s = index / PICTURES_HZ
            if outage is not None or time_s < max(self._connection.began_s, self._opens_s):
                self._freshness = None
                self.truth.cut()
                continue
            try:
                events += self._see(index, time_s)
            except DeviceError as error:
                self._gone, interrupted = Gone(time_s, str(error)), True
                self._opens_s = time_s + self._chance.uniform(*CAMERA_BACK_S)
                events.clear()
        self._next = int(now_s * PICTURES_HZ + 1e-6) + 1
        return [*events, *self.watch.step(now_s, self._gone)], interrupted and self.watch.newest_s is not None

    def _see(self, index: int, time_s: float) -> list[Event]:
        """What the camera's stream gives for one picture; nothing for one that is not new."""
        fault = self._lane.at(time_s)
        kind = "" if fault is None else fault.kind
        if kind == "camera frozen":
            self.truth.cut()
        else:
            noise = self._noise[index % _NOISES]
            self._seen = noise if kind == "darkness" else self._pictures[index % len(self._pictures)] ^ noise
            self.truth.add(time_s)
        self._freshness = self._freshness or Freshness()
        if not self._freshness.is_new(self._seen, None, time_s):
            return []
        self._gone = None
        self.watch.evidence(time_s)
        return [Frame(time_s, lambda picture=self._seen: picture)]

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class _Callback:
    """``taken_s``: when its last sample was taken, in truth; ``came_s``: when its callback came."""

    taken_s: float
    came_s: float
    silent: bool


class SimulatedMicrophone:
    """A microphone whose crystal is off by up to ``SKEW_PPM``, a different one after each opening. ``worst_error_s`` is the largest
    difference between the sample clock's time and the truth once a stream is ``SETTLED_S`` old; ``first_error_s`` the largest before."""

    def __init__(self, recording: Recording, faults: Sequence[Fault], seed: int) -> None:
        self.watch, self.truth = Watch("microphone"), Truth()
        self.dropped = 0
        self.worst_error_s = self.first_error_s = 0.0
        self._samples = recording.samples
        self._lane = Lane(faults, "microphone")
        outages = _outages(self._lane.faults, MICROPHONE_BACK_S, f"microphone {seed}")
        self.outages, self._connection = len(outages), _Connection(outages)
        self._chance = random.Random(seed)
        self._track: Track | None = None

    @property
    def drift_ppm(self) -> float | None:
        return None if self._track is None else self._track.drift_ppm

    def take(self, now_s: float) -> tuple[list[Event], bool]:
        outage, news = self._connection.at(now_s)
        if outage is not None:
            self._track = None
            self.truth.cut()
            gone = Gone(outage.noticed_s, outage.reason) if now_s >= outage.noticed_s else None
            return [*self.watch.step(now_s, gone)], news and self.watch.newest_s is not None
        track = self._track or self._open(self._connection.began_s)
        sounds: list[Sound] = []
        while self._next.came_s <= now_s:
            sound = track.push(Block(self._number, self._next.came_s, self._heard(self._next)))
            assert sound is not None, "at 16 kHz no sample is held back"
            sounds.append(sound)
            self.truth.add(self._next.taken_s)
            self._compare(sound.time_s, self._next.taken_s)
            self._next, self._number = self._block(self._next), self._number + 1
        events: list[Event] = []
        if sounds:  # as one, because perception hears no difference
            events.append(Sound(sounds[-1].time_s, np.concatenate([sound.samples for sound in sounds])))
            self.watch.evidence(sounds[-1].time_s)
        return [*events, *self.watch.step(now_s)], False

    def _open(self, began_s: float) -> Track:
        self._began_s, self._number = began_s, 0
        self._ppm = self._chance.uniform(-SKEW_PPM, SKEW_PPM)
        self._next = self._block(_Callback(began_s, began_s, False))
        self._track = Track(SAMPLE_RATE_HZ)
        return self._track

    def _block(self, before: _Callback) -> _Callback:
        """The block after ``before``: callbacks never overtake each other, so that those behind a late one come at once."""
        fault = self._lane.at(before.taken_s)
        kind = "" if fault is None else fault.kind
        ppm = fault.amount if fault is not None and kind == "clock skew" else self._ppm
        taken_s = before.taken_s + BLOCK_SAMPLES / SAMPLE_RATE_HZ * (1 + ppm * 1e-6)
        delay_s = (
            self._chance.uniform(0, LATEST_S)
            if kind == "late callbacks"
            else self._chance.expovariate(1 / JITTER_S)
        )
        return _Callback(taken_s, max(before.came_s, taken_s + min(delay_s, LATEST_S)), kind == "silence")

    def _compare(self, published_s: float, taken_s: float) -> None:
        error_s = abs(published_s - taken_s)
        if taken_s - self._began_s > SETTLED_S:
            self.worst_error_s = max(self.worst_error_s, error_s)
        else:
            self.first_error_s = max(self.first_error_s, error_s)

    def _heard(self, callback: _Callback) -> npt.NDArray[np.float32]:
        """(BLOCK_SAMPLES,)."""
        if callback.silent:
            return np.zeros(BLOCK_SAMPLES, np.float32)
        first = self._number * BLOCK_SAMPLES % (len(self._samples) - BLOCK_SAMPLES)
        return self._samples[first : first + BLOCK_SAMPLES]

    def close(self) -> None:
        """Nothing to close."""
