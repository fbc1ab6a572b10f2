"""A microphone as a stream of sound, through PortAudio at the device's own rate.

In: the microphone's configuration. Out: ``Sound`` at 16 kHz, stamped by the device's sample count on the runtime's clock (``SampleClock``) less the time
that it was under way. A microphone that is absent, gone or silent (not quiet: without a single block) raises ``DeviceError``; ``runtime.live`` opens it
again, and a replugged one is found without a new start of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.clock import Clock, SampleClock
from runtime.config import MicrophoneConfig
from runtime.doctor_probes import ProbeError
from runtime.live import DeviceError
from runtime.mailbox import Closed, Ring
from runtime.messages import Sound
from runtime.microphone_search import Found, find_microphone
from vaemotion.contract.audio import SAMPLE_RATE_HZ, StreamingResampler, downmix

BLOCK_S = 0.01
FIRST_S = 5.0  # for the first block; a sound server takes up to 2.2 s to begin
SILENT_S = 2.0  # between two blocks; a suspended device stays "active" for ever
DRIFT_KNOWN_S = 10.0  # of sound, before the drift means anything
_WAITING = 100  # blocks between PortAudio's thread and ours
_POLL_S = 0.1


@dataclass(frozen=True)
class Block:
    """What PortAudio gave. ``number``: from 0, without a hole; samples: (n, channels) float32; ``broken``: PortAudio lost samples before it."""

    number: int
    arrival_s: float
    samples: npt.NDArray[np.float32]
    broken: bool = False


class Microphone:
    """``stream`` runs in a thread of its own (``runtime.live.Supervised``); ``drift_ppm`` and ``gaps`` may be read by any."""

    def __init__(self, config: MicrophoneConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._track: Track | None = None
        self._earlier_gaps = 0

    @property
    def drift_ppm(self) -> float | None:
        """By how much the device's clock is slow against ours; None while it is not open, or too fresh."""
        track = self._track  # the other thread may end it meanwhile
        return None if track is None else track.drift_ppm

    @property
    def gaps(self) -> int:
        """How often samples were lost in a stream that went on."""
        track = self._track
        return self._earlier_gaps + (0 if track is None else track.gaps)

    def stream(self, stop: threading.Event) -> Iterator[Sound]:
        """What the microphone hears, until ``stop`` is set. Raises DeviceError when it is not there, or no longer."""
        try:
            found = find_microphone(self._config.device)
        except ProbeError as error:
            raise DeviceError(str(error)) from None
        ring: Ring[Block] = Ring(_WAITING, "drop-oldest")
        stream = self._start(found, ring)
        self._track = track = Track(found.rate_hz)
        try:
            for block in self._blocks(ring, stop):
                sound = track.push(block)
                if sound is not None:
                    yield Sound(sound.time_s - self._config.offset_ms / 1000, sound.samples)
        finally:
            self._track, self._earlier_gaps = None, self.gaps
            stream.close()  # PortAudio aborts it, and does not wait for what a dead device will never give

    def _start(self, found: Found, ring: Ring[Block]) -> Any:
        """PortAudio's stream, running. Its thread copies and leaves; ``finished_callback`` comes when the device is gone."""
        numbers = itertools.count()

        def take(samples: npt.NDArray[np.float32], _count: int, _time: object, status: Any) -> None:
            broken = bool(status.input_overflow)
            with contextlib.suppress(Closed):
                ring.put(Block(next(numbers), self._clock.now_s(), samples.copy(), broken))

        sounddevice: Any = importlib.import_module("sounddevice")
        try:
            _renew(sounddevice, found.names)
            stream = sounddevice.InputStream(
                found.rate_hz, round(BLOCK_S * found.rate_hz), found.index, found.channels, "float32",
                callback=take, finished_callback=ring.close,
            )  # fmt: skip
            try:
                stream.start()
            except BaseException:
                stream.close()
                raise
        except sounddevice.PortAudioError as error:
            raise DeviceError(f"it cannot be opened: {error.args[0]}") from None
        return stream

    def _blocks(self, ring: Ring[Block], stop: threading.Event) -> Iterator[Block]:
        newest_s, limit_s = self._clock.now_s(), FIRST_S
        while not stop.is_set():
            try:
                block = ring.take(_POLL_S)
            except Closed:
                raise DeviceError("it is gone") from None
            if block is not None:
                newest_s, limit_s = block.arrival_s, SILENT_S
                yield block
            elif self._clock.now_s() - newest_s > limit_s:
                raise DeviceError(f"it gave nothing for {limit_s:g} s")


class Track:
    """Blocks of one stream → sound at 16 kHz with its time: no thread, no clock, no device.

    Where samples are missing the count begins anew; NaN and infinity become silence. The resampler holds some samples back, and a sound's time is that
    of its own last sample.
    """

    def __init__(self, rate_hz: int) -> None:
        self.gaps = 0
        self._rate_hz = rate_hz
        self._expected: int = 0
        self._clock = SampleClock(rate_hz)
        self._begin()

    def _begin(self) -> None:
        self._clock.reset()
        self._resampler = StreamingResampler(self._rate_hz)
        self._came = self._given = 0  # samples since, at the device's rate and at 16 kHz

    @property
    def drift_ppm(self) -> float | None:
        return self._clock.drift_ppm if self._came > DRIFT_KNOWN_S * self._rate_hz else None

    def push(self, block: Block) -> Sound | None:
        """None when the block completes no sample at 16 kHz."""
        if block.broken or block.number != self._expected:
            self.gaps += 1
            self._begin()
        self._expected = block.number + 1
        samples = downmix(np.nan_to_num(block.samples, nan=0.0, posinf=0.0, neginf=0.0))
        self._came += len(samples)
        self._clock.push(len(samples), block.arrival_s)
        sound = self._resampler.push(samples)
        self._given += len(sound)
        if not len(sound):
            return None
        return Sound(self._clock.time_of(round(self._given * self._rate_hz / SAMPLE_RATE_HZ)), sound)


def _renew(sounddevice: Any, names: list[str]) -> None:
    """Let PortAudio look anew if its list of devices is not ``names``. No stream is open now, so it may."""
    with contextlib.suppress(sounddevice.PortAudioError):  # it could not begin the last time
        if [device["name"] for device in sounddevice.query_devices()] == names:
            return
        sounddevice._terminate()
    sounddevice._initialize()
