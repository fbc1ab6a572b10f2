"""From decoded blocks of sound to one channel at 16 kHz on the medium's timeline.

Any sample format, rate and number of channels, changing at any moment. What is missing is silence; what lies
twice is given once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from vaemotion.contract.audio import SAMPLE_RATE_HZ, StreamingResampler, downmix

Float32 = npt.NDArray[np.float32]

# Stamps of sound jitter by less; a larger gap is filled with silence.
GAP_S = 0.02
# Sound that lies further behind what was given already is left out, as FFmpeg's aresample does.
OVERLAP_S = 0.1
_SILENCE_S = 1.0
# FFmpeg's filters take no more.
MOST_CONVERTED_CHANNELS = 64


class Converter:
    """Conversion of a stream's blocks, (channels, rate, format as they come), to (n,) float32 at 16 kHz.

    It begins at ``from_s`` of the medium, a whole second.
    """

    def __init__(self, from_s: int = 0) -> None:
        self.given = from_s * SAMPLE_RATE_HZ
        # Blocks with samples that were not finite, which became silence.
        self.broken_blocks = 0
        self._begun = False
        self._rate_hz = 0
        # Samples at the stream's own rate, from the medium's start.
        self._position = 0
        self._kind: tuple[str, str, int] | None = None
        self._packer: Any = None
        self._resampler: StreamingResampler | None = None

    def push(self, frame: av.AudioFrame, time_s: float) -> Iterator[Float32]:
        """Yield the sound at 16 kHz that a block completes; the block is placed at ``time_s``."""
        samples = downmix(self._packed(frame))  # (n,)
        if frame.sample_rate != self._rate_hz:
            yield from self._begin(frame.sample_rate)
        rate_hz, resampler = self._rate_hz, self._resampler
        assert resampler is not None
        gap = round(time_s * rate_hz) - self._position
        if gap > (GAP_S * rate_hz if self._begun else 0):
            yield from self._silence(gap)
        elif gap < (-OVERLAP_S * rate_hz if self._begun else 0):
            samples = samples[-gap:]
        self._begun = self._begun or len(samples) > 0
        self._position += len(samples)
        if not np.isfinite(samples).all():
            self.broken_blocks += 1
            samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        yield self._count(resampler.push(samples))

    def finish(self) -> Iterator[Float32]:
        """Yield the sound that the filter still holds, at the end of the stream or of its rate."""
        if self._resampler is not None:
            yield self._count(self._resampler.finish())
        self._resampler = None

    def _begin(self, rate_hz: int) -> Iterator[Float32]:
        yield from self.finish()
        self._rate_hz, self._resampler = rate_hz, StreamingResampler(rate_hz)
        self._position = round(self.given * rate_hz / SAMPLE_RATE_HZ)

    def _silence(self, gap: int) -> Iterator[Float32]:
        assert self._resampler is not None
        self._position += gap
        most = round(_SILENCE_S * self._rate_hz)
        while gap > 0:
            yield self._count(self._resampler.push(np.zeros(min(gap, most), np.float32)))
            gap -= most

    def _count(self, samples: Float32) -> Float32:
        self.given += len(samples)
        return samples

    def _packed(self, frame: av.AudioFrame) -> Float32:
        """Return a block's samples as (n, channels) float32.

        They are packed first: PyAV reads planes only up to the eighth channel.
        """
        channels = frame.layout.nb_channels
        if channels > MOST_CONVERTED_CHANNELS and frame.format.is_packed:
            return _scaled(frame.to_ndarray()).reshape(-1, channels)
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if kind != self._kind:
            self._kind, self._packer = kind, av.AudioResampler(format="flt")
        blocks = [block.to_ndarray().reshape(-1, channels) for block in self._packer.resample(frame)]
        return np.concatenate(blocks) if blocks else np.zeros((0, channels), np.float32)


def _scaled(samples: npt.NDArray[Any]) -> Float32:
    """Return samples of any type as float32 in [-1, 1]."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    zero = 128 if samples.dtype.kind == "u" else 0
    full = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return ((samples.astype(np.float64) - zero) / full).astype(np.float32)
