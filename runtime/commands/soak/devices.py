"""A simulated camera and microphone for soaks: they deliver a recording and fail by a schedule.

In: a recording, faults, a seed, and the time of each call. Out: events, as a
``runtime.sources.supervision.Device`` gives them. There are no threads and no waiting, so that the same seed
gives the same events. Each device records when it really delivered something new (``GroundTruth``); the
soak's observer judges the runtime by that.

Simulated is what lies outside the process: the times at which a frame or a block of samples was taken and
delivered. The rest is the runtime's own: ``StaleFrameFilter`` for frames, ``BlockResampler`` with its
``SampleClock`` for samples, ``DeviceMonitor`` for loss and freeze.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.commands.soak.faults import OUTAGES, SKEW_PPM, Fault, Lane
from runtime.commands.soak.film import FRAMES_PER_S, Recording
from runtime.commands.soak.records import DeviceRecord, Simulated
from runtime.messages import Frame, Sound
from runtime.sources.camera import StaleFrameFilter
from runtime.sources.feed import Event
from runtime.sources.microphone import SILENT_S, Block, BlockResampler
from runtime.sources.supervision import DeviceError, DeviceLoss, DeviceMonitor
from vaemotion.contract.audio import SAMPLE_RATE_HZ

BLOCK_SAMPLES = 640  # of one callback, 40 ms; a real one brings 10 ms, which would cost four times as much
JITTER_S = 0.002  # mean delay of a callback
LATEST_S = 0.06  # largest delay of a late callback
_NOISES = 31  # frames of sensor noise; a prime, so that two frames in a row never have the same noise
SETTLED_S = 3.0  # age of a stream from which its clock is judged
# Range from a device's return to its first data: the runtime's back-off and the opening, which takes up to
# 2.2 s on a real microphone.
CAMERA_BACK_S, MICROPHONE_BACK_S = (0.1, 1.5), (0.3, 3.2)


class GroundTruth:
    """The intervals in which a device really delivered new data; written by the loop, read by any thread."""

    def __init__(self) -> None:
        self._begins_s: list[float] = []
        self._ends_s: list[float] = []
        self._streaming = False

    def add(self, time_s: float) -> None:
        """Record new data at ``time_s``; it continues the stream unless that was cut."""
        if self._streaming:
            self._ends_s[-1] = time_s
        else:
            self._ends_s.append(time_s)
            self._begins_s.append(time_s)
            self._streaming = True

    def cut(self) -> None:
        """End the stream; the next data begins a new interval."""
        self._streaming = False

    def newest_s(self, now_s: float) -> float | None:
        """Return the time of the newest data at or before ``now_s``, None where there was none yet.

        Within an interval that is ``now_s``.
        """
        position = bisect_right(self._begins_s, now_s) - 1
        return None if position < 0 else min(self._ends_s[position], now_s)


@dataclass(frozen=True)
class _Outage:
    """A time without new data."""

    start_s: float
    noticed_s: float  # the device's reader reports the loss
    back_s: float  # the first new data
    reason: str


def _outages(faults: Sequence[Fault], back_s: tuple[float, float], seed: str) -> list[_Outage]:
    """Return the outages of ``faults``. ``back_s``: range from a fault's end to the first new data."""
    generator = random.Random(seed)
    found: list[_Outage] = []
    for fault in faults:
        if fault.kind not in OUTAGES:
            continue
        noticed_s, reason = fault.start_s, "no such device"
        if fault.kind.endswith("frozen"):
            noticed_s, reason = fault.start_s + SILENT_S, f"no data for {SILENT_S:g} s"
        opened_s = max(noticed_s, fault.end_s) + generator.uniform(*back_s)
        found.append(_Outage(fault.start_s, noticed_s, opened_s, reason))
    return found


class _Connection:
    """The state of a device's connection, for a reader whose time never goes back."""

    def __init__(self, outages: list[_Outage]) -> None:
        self._outages = outages
        self._next = 0
        self._noticed: _Outage | None = None  # the last one that was reported as noticed
        self.began_s = 0.0  # begin of the stream that runs, or ran last

    def at(self, now_s: float) -> tuple[_Outage | None, bool]:
        """Return the outage at ``now_s``, and True where it was noticed since the last call."""
        while self._next < len(self._outages) and self._outages[self._next].back_s <= now_s:
            self.began_s = self._outages[self._next].back_s
            self._next += 1
        outage = self._outages[self._next] if self._next < len(self._outages) else None
        if outage is None or now_s < outage.start_s:
            return None, False
        newly_noticed = now_s >= outage.noticed_s and outage is not self._noticed
        self._noticed = outage if newly_noticed else self._noticed
        return outage, newly_noticed


class SimulatedCamera:
    """A camera with a sensor's noise; frozen, it repeats its last frame.

    ``recording``: frames that it repeats without end. ``faults``: those of its lane are used.
    """

    def __init__(self, recording: Recording, faults: Sequence[Fault], seed: int) -> None:
        self.monitor, self.truth = DeviceMonitor("camera"), GroundTruth()
        self.dropped = 0
        self._frames = recording.frames
        self._lane = Lane(faults, "camera")
        outages = [fault for fault in self._lane.faults if fault.kind in OUTAGES]
        unplugged = [fault for fault in outages if fault.kind != "camera frozen"]
        self.outages = len(outages)
        self._connection = _Connection(_outages(unplugged, CAMERA_BACK_S, f"camera {seed}"))
        self._random = random.Random(seed)
        # The sensor's noise: no two frames are the same, and black is never exactly black.
        sensor = np.random.default_rng(seed)
        self._noise = sensor.integers(0, 2, (_NOISES, *recording.frames.shape[1:]), np.uint8)
        self._next = 0  # number of the next frame since the run began
        self._opens_s = 0.0
        self._stale_filter: StaleFrameFilter | None = None
        self._loss: DeviceLoss | None = None
        self._frame = self._noise[0]

    def take(self, now_s: float) -> tuple[list[Event], bool]:
        outage, interrupted = self._connection.at(now_s)
        if outage is not None and now_s >= outage.noticed_s:
            self._loss = DeviceLoss(outage.noticed_s, outage.reason)
        events: list[Event] = []
        for index in range(self._next, int(now_s * FRAMES_PER_S + 1e-6) + 1):
            time_s = index / FRAMES_PER_S
            if outage is not None or time_s < max(self._connection.began_s, self._opens_s):
                self._stale_filter = None
                self.truth.cut()
                continue
            try:
                events += self._capture(index, time_s)
            except DeviceError as error:
                self._loss, interrupted = DeviceLoss(time_s, str(error)), True
                self._opens_s = time_s + self._random.uniform(*CAMERA_BACK_S)
                events.clear()
        self._next = int(now_s * FRAMES_PER_S + 1e-6) + 1
        events += self.monitor.step(now_s, self._loss)
        return events, interrupted and self.monitor.newest_s is not None

    def _capture(self, index: int, time_s: float) -> list[Event]:
        """Deliver one frame as a camera's stream would: an event, or none where the frame is stale."""
        fault = self._lane.at(time_s)
        kind = "" if fault is None else fault.kind
        if kind == "camera frozen":
            self.truth.cut()
        else:
            noise = self._noise[index % _NOISES]
            self._frame = noise if kind == "darkness" else self._frames[index % len(self._frames)] ^ noise
            self.truth.add(time_s)
        self._stale_filter = self._stale_filter or StaleFrameFilter()
        if not self._stale_filter.is_fresh(self._frame, None, time_s):
            return []
        self._loss = None
        self.monitor.add_evidence(time_s)
        return [Frame(time_s, lambda frame=self._frame: frame)]

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class _Callback:
    """One block of samples."""

    taken_s: float  # true time of its last sample
    came_s: float  # time of its callback
    silent: bool


class SimulatedMicrophone:
    """A microphone whose crystal is off by up to ``SKEW_PPM``, by another amount after each opening.

    ``worst_error_s``: largest difference of the sample clock to the true time in streams older than
    ``SETTLED_S``; ``first_error_s``: the largest in younger ones.
    """

    def __init__(self, recording: Recording, faults: Sequence[Fault], seed: int) -> None:
        self.monitor, self.truth = DeviceMonitor("microphone"), GroundTruth()
        self.dropped = 0
        self.worst_error_s = self.first_error_s = 0.0
        self._samples = recording.samples
        self._lane = Lane(faults, "microphone")
        outages = _outages(self._lane.faults, MICROPHONE_BACK_S, f"microphone {seed}")
        self.outages, self._connection = len(outages), _Connection(outages)
        self._random = random.Random(seed)
        self._resampler: BlockResampler | None = None

    @property
    def drift_ppm(self) -> float | None:
        return None if self._resampler is None else self._resampler.drift_ppm

    def take(self, now_s: float) -> tuple[list[Event], bool]:
        outage, newly_noticed = self._connection.at(now_s)
        if outage is not None:
            self._resampler = None
            self.truth.cut()
            loss = DeviceLoss(outage.noticed_s, outage.reason) if now_s >= outage.noticed_s else None
            return [*self.monitor.step(now_s, loss)], newly_noticed and self.monitor.newest_s is not None
        resampler = self._resampler or self._open(self._connection.began_s)
        sounds: list[Sound] = []
        while self._next.came_s <= now_s:
            sound = resampler.push(Block(self._number, self._next.came_s, self._samples_of(self._next)))
            assert sound is not None, "at 16 kHz no sample is held back"
            sounds.append(sound)
            self.truth.add(self._next.taken_s)
            self._track_error(sound.time_s, self._next.taken_s)
            self._next, self._number = self._block_after(self._next), self._number + 1
        events: list[Event] = []
        if sounds:  # as one block: to perception it is the same
            events.append(Sound(sounds[-1].time_s, np.concatenate([sound.samples for sound in sounds])))
            self.monitor.add_evidence(sounds[-1].time_s)
        return [*events, *self.monitor.step(now_s)], False

    def _open(self, began_s: float) -> BlockResampler:
        self._began_s, self._number = began_s, 0
        self._ppm = self._random.uniform(-SKEW_PPM, SKEW_PPM)
        self._next = self._block_after(_Callback(began_s, began_s, False))
        self._resampler = BlockResampler(SAMPLE_RATE_HZ)
        return self._resampler

    def _block_after(self, before: _Callback) -> _Callback:
        """Return the block after ``before``. Callbacks keep their order, also behind a late one."""
        fault = self._lane.at(before.taken_s)
        kind = "" if fault is None else fault.kind
        ppm = fault.amount if fault is not None and kind == "clock skew" else self._ppm
        taken_s = before.taken_s + BLOCK_SAMPLES / SAMPLE_RATE_HZ * (1 + ppm * 1e-6)
        delay_s = (
            self._random.uniform(0, LATEST_S)
            if kind == "late callbacks"
            else self._random.expovariate(1 / JITTER_S)
        )
        return _Callback(taken_s, max(before.came_s, taken_s + min(delay_s, LATEST_S)), kind == "silence")

    def _track_error(self, published_s: float, taken_s: float) -> None:
        """Update the clock's largest errors by a block's published and true time."""
        error_s = abs(published_s - taken_s)
        if taken_s - self._began_s > SETTLED_S:
            self.worst_error_s = max(self.worst_error_s, error_s)
        else:
            self.first_error_s = max(self.first_error_s, error_s)

    def _samples_of(self, callback: _Callback) -> npt.NDArray[np.float32]:
        """Return the block's samples (BLOCK_SAMPLES,)."""
        if callback.silent:
            return np.zeros(BLOCK_SAMPLES, np.float32)
        first = self._number * BLOCK_SAMPLES % (len(self._samples) - BLOCK_SAMPLES)
        return self._samples[first : first + BLOCK_SAMPLES]

    def close(self) -> None:
        """Nothing to close."""


def record_devices(
    camera: SimulatedCamera, microphone: SimulatedMicrophone, back_s: Mapping[str, Sequence[float]]
) -> Simulated:
    """Return the record of both devices. ``back_s``: by role, the recoveries that the observer measured."""
    return Simulated(
        devices={
            device.monitor.name: DeviceRecord(
                device.outages, device.monitor.losses, tuple(back_s[device.monitor.name])
            )
            for device in (camera, microphone)
        },
        clock_error_ms=round(1000 * microphone.worst_error_s, 2),
        clock_first_error_ms=round(1000 * microphone.first_error_s, 2),
    )
