"""A microphone as a stream of sound, through PortAudio at the device's own rate.

In: the microphone's configuration. Out: ``Sound`` at 16 kHz, stamped by the device's sample count on the
runtime's clock (``SampleClock``) less the configured transport time. A microphone that is absent, lost or
dead (without a single block, not only quiet) raises ``DeviceError``; ``runtime.sources.supervision``
opens it again. A microphone that was replugged is found without a restart of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.clock import Clock, SampleClock
from runtime.machine.child_process import ProbeError
from runtime.mailbox import BoundedQueue, Closed
from runtime.messages import Sound
from runtime.sources.config import MicrophoneConfig
from runtime.sources.microphone_search import Found, find_microphone
from runtime.sources.supervision import DeviceError
from vaemotion.contract.audio import SAMPLE_RATE_HZ, StreamingResampler, downmix

BLOCK_S = 0.01
FIRST_S = 5.0  # for the first block; a sound server takes up to 2.2 s to begin
SILENT_S = 2.0  # between two blocks; a suspended device stays "active" for ever
DRIFT_KNOWN_S = 10.0  # of sound, before the measured drift is meaningful
QUEUED_BLOCKS = 100  # between PortAudio's thread and ours
_POLL_S = 0.1


@dataclass(frozen=True)
class Block:
    """A block from PortAudio.

    ``number``: from 0, without a gap; ``samples``: (n, channels) float32; ``broken``: PortAudio lost samples
    before it.
    """

    number: int
    arrival_s: float
    samples: npt.NDArray[np.float32]
    broken: bool = False


class Microphone:
    """A microphone whose ``stream`` runs in a thread of its own (``DeviceThread``).

    ``drift_ppm`` and ``gaps`` may be read by any thread.
    """

    def __init__(self, config: MicrophoneConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._resampler: BlockResampler | None = None
        self._earlier_gaps = 0

    @property
    def drift_ppm(self) -> float | None:
        """Excess length of the device's second over the runtime's; None while closed, or too new."""
        resampler = self._resampler  # the other thread may end it meanwhile
        return None if resampler is None else resampler.drift_ppm

    @property
    def gaps(self) -> int:
        """Number of times that samples were lost in a stream that went on."""
        resampler = self._resampler
        return self._earlier_gaps + (0 if resampler is None else resampler.gaps)

    def stream(self, stop: threading.Event) -> Iterator[Sound]:
        """Yield the microphone's sound until ``stop`` is set. Raises DeviceError for a lost microphone."""
        try:
            found = find_microphone(self._config.device)
        except ProbeError as error:
            raise DeviceError(str(error)) from None
        blocks: BoundedQueue[Block] = BoundedQueue(QUEUED_BLOCKS, "drop-oldest")
        stream = self._start(found, blocks)
        self._resampler = resampler = BlockResampler(found.rate_hz)
        try:
            for block in self._blocks(blocks, stop):
                sound = resampler.push(block)
                if sound is not None:
                    yield replace(sound, time_s=sound.time_s - self._config.offset_ms / 1000)
        finally:
            self._resampler, self._earlier_gaps = None, self.gaps
            stream.close()  # PortAudio aborts it, and does not wait for data of a dead device

    def _start(self, found: Found, blocks: BoundedQueue[Block]) -> Any:
        """Start PortAudio's stream, whose thread copies each block into ``blocks``.

        PortAudio calls ``finished_callback`` when the device disappears.
        """
        numbers = itertools.count()

        def take(samples: npt.NDArray[np.float32], _count: int, _time: object, status: Any) -> None:
            broken = bool(status.input_overflow)
            with contextlib.suppress(Closed):
                blocks.put(Block(next(numbers), self._clock.now_s(), samples.copy(), broken))

        sounddevice: Any = importlib.import_module("sounddevice")
        try:
            _refresh_devices(sounddevice, found.names)
            stream = sounddevice.InputStream(
                samplerate=found.rate_hz,
                blocksize=round(BLOCK_S * found.rate_hz),
                device=found.index,
                channels=found.channels,
                dtype="float32",
                callback=take,
                finished_callback=blocks.close,
            )
            try:
                stream.start()
            except BaseException:
                stream.close()
                raise
        except sounddevice.PortAudioError as error:
            raise DeviceError(f"it cannot be opened: {error.args[0]}") from None
        return stream

    def _blocks(self, blocks: BoundedQueue[Block], stop: threading.Event) -> Iterator[Block]:
        newest_s, limit_s = self._clock.now_s(), FIRST_S
        while not stop.is_set():
            try:
                block = blocks.take(_POLL_S)
            except Closed:
                raise DeviceError("the device disappeared") from None
            if block is not None:
                newest_s, limit_s = block.arrival_s, SILENT_S
                yield block
            elif self._clock.now_s() - newest_s > limit_s:
                raise DeviceError(f"no data for {limit_s:g} s")


class BlockResampler:
    """Conversion of one stream's blocks to stamped sound at 16 kHz: no thread, no clock, no device.

    Where samples are missing the count restarts; NaN and infinity become silence and are counted
    (``Sound.broken``), and a block of nothing else is missing: it is no evidence of a microphone that works.
    The resampler holds some samples back, and a sound's time is that of its own last sample.
    """

    def __init__(self, rate_hz: int) -> None:
        self.gaps = 0
        self._rate_hz = rate_hz
        self._expected: int = 0
        self._broken = 0  # samples that were not finite, since the last sound
        self._clock = SampleClock(rate_hz)
        self._restart()

    def _restart(self) -> None:
        self._clock.reset()
        self._resampler = StreamingResampler(self._rate_hz)
        self._pushed = self._given = 0  # samples since, at the device's rate and at 16 kHz

    @property
    def drift_ppm(self) -> float | None:
        """Excess length of the device's second over the runtime's; None until it is known."""
        return self._clock.drift_ppm if self._pushed > DRIFT_KNOWN_S * self._rate_hz else None

    def push(self, block: Block) -> Sound | None:
        """Convert a block; return None when it completes no sample at 16 kHz."""
        is_finite = np.isfinite(block.samples)
        self._broken += int(np.count_nonzero(~is_finite))
        if not is_finite.any():
            return None  # the next block comes after a gap
        if block.broken or block.number != self._expected:
            self.gaps += 1
            self._restart()
        self._expected = block.number + 1
        samples = downmix(np.where(is_finite, block.samples, np.float32(0)))  # (n, channels) → (n,)
        self._pushed += len(samples)
        self._clock.push(len(samples), block.arrival_s)
        sound = self._resampler.push(samples)
        self._given += len(sound)
        if not len(sound):
            return None
        broken, self._broken = self._broken, 0
        time_s = self._clock.time_of(round(self._given * self._rate_hz / SAMPLE_RATE_HZ))
        return Sound(time_s, sound, broken)


def _refresh_devices(sounddevice: Any, names: list[str]) -> None:
    """Restart PortAudio if its list of devices is not ``names``, which is safe while no stream is open."""
    with contextlib.suppress(sounddevice.PortAudioError):  # it could not start the last time
        if [device["name"] for device in sounddevice.query_devices()] == names:
            return
        sounddevice._terminate()
    sounddevice._initialize()
