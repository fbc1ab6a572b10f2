"""Sound on its way into the model: downmix, resampling to 16 kHz, log-mel of a whole clip and incrementally.

In: samples at any rate and channel count. Out: log-mel frames, (frames, mels) float32.

The log-mel is Kaldi's filter bank as ``ASTFeatureExtractor`` computes it in its NumPy branch: 25 ms frames without
centring, DC offset removed, pre-emphasis, symmetric Hann window, power spectrum, triangular Kaldi-mel filters, natural logarithm.
Frame i covers samples [i * hop, i * hop + frame): a frame never looks into the future, so that it can be computed
as soon as its last sample has arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import soxr  # pyright: ignore[reportMissingTypeStubs]

SAMPLE_RATE_HZ = 16_000

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LogMelConfig:
    """Constants of the log-mel; the defaults are ``vaemotion-tiny``'s. ``mean`` and ``std`` normalise the log-mel
    as AST does: (x - mean) / (2 * std)."""

    n_mels: int = 64
    hop_samples: int = 320  # 20 ms
    frame_samples: int = 400  # 25 ms
    fft_samples: int = 512
    low_hz: float = 20.0
    high_hz: float = 8000.0
    preemphasis: float = 0.97
    mel_floor: float = 1.192092955078125e-07
    mean: float = -4.2677393
    std: float = 4.5689974

    @property
    def hop_s(self) -> float:
        return self.hop_samples / SAMPLE_RATE_HZ

    def frames_in(self, n_samples: int) -> int:
        """How many whole frames ``n_samples`` hold."""
        return (
            0 if n_samples < self.frame_samples else 1 + (n_samples - self.frame_samples) // self.hop_samples
        )

    def samples_for(self, n_frames: int) -> int:
        """The fewest samples that hold ``n_frames`` frames."""
        return 0 if n_frames == 0 else (n_frames - 1) * self.hop_samples + self.frame_samples


AST_LOG_MEL = LogMelConfig(n_mels=128, hop_samples=160)


def level_dbfs(samples: npt.NDArray[np.float32]) -> float:
    """Level of sound of any shape with at least one sample: dB relative to a full-scale sine (AES17-2020), without its DC offset. Minus infinity
    for digital silence."""
    rms = float(np.std(samples, dtype=np.float64))
    return 20 * math.log10(math.sqrt(2) * rms) if rms > 0 else -math.inf


def downmix(samples: npt.NDArray[np.floating]) -> Float32:
    """Mean of the channels. samples: (n,) or (n, channels). Returns (n,) float32."""
    if samples.ndim == 1:
        return np.ascontiguousarray(samples, np.float32)
    if samples.ndim != 2:
        raise ValueError(f"samples must be (n,) or (n, channels), got shape {samples.shape}")
    return samples.mean(axis=1, dtype=np.float64).astype(np.float32)


def resample(samples: Float32, rate_hz: float) -> Float32:
    """One channel at ``rate_hz`` → 16 kHz, soxr's HQ recipe. samples: (n,). Returns (m,) float32."""
    if rate_hz <= 0:
        raise ValueError(f"rate_hz must be positive, got {rate_hz}")
    if rate_hz == SAMPLE_RATE_HZ or samples.size == 0:
        return np.ascontiguousarray(samples, np.float32)
    return np.asarray(soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ, quality="HQ"), np.float32)  # pyright: ignore


class StreamingResampler:
    """``resample`` for a stream: push blocks as they come, get what they complete; ``finish`` gives the rest."""

    def __init__(self, rate_hz: float) -> None:
        if rate_hz <= 0:
            raise ValueError(f"rate_hz must be positive, got {rate_hz}")
        self._stream = (
            None
            if rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        )

    def push(self, samples: Float32) -> Float32:
        """samples: (n,) at ``rate_hz``. Returns (m,) float32 at 16 kHz, m may be 0."""
        return samples if self._stream is None else self._chunk(samples, last=False)

    def finish(self) -> Float32:
        """What the filter still holds; the stream is over."""
        empty = np.zeros(0, np.float32)
        return empty if self._stream is None else self._chunk(empty, last=True)

    def _chunk(self, samples: Float32, *, last: bool) -> Float32:
        assert self._stream is not None
        return np.asarray(self._stream.resample_chunk(samples, last=last), np.float32)  # pyright: ignore


def hertz_to_mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Kaldi's (HTK's) mel scale: 1127 ln(1 + f / 700)."""
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


@lru_cache(maxsize=8)
def mel_filters(config: LogMelConfig) -> npt.NDArray[np.float64]:
    """Triangles that are linear on the mel axis, as Kaldi makes them. Returns (fft // 2 + 1, mels).

    The bins' frequencies are ``linspace(0, nyquist, fft / 2)`` with a last bin of weight 0, as in
    ``transformers.audio_utils.mel_filter_bank(triangularize_in_mel_space=True)`` with AST's arguments.
    """
    edges = np.linspace(
        hertz_to_mel(config.low_hz), hertz_to_mel(config.high_hz), config.n_mels + 2
    )  # (mels + 2,)
    bin_hz = SAMPLE_RATE_HZ / config.fft_samples * np.arange(config.fft_samples // 2)
    bins = hertz_to_mel(bin_hz)[:, None]  # (fft // 2, 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return np.pad(np.maximum(triangles, 0.0), ((0, 1), (0, 0)))


@lru_cache(maxsize=8)
def _window(frame_samples: int) -> npt.NDArray[np.float64]:
    return np.hanning(frame_samples)


def log_mel(samples: Float32, config: LogMelConfig) -> Float32:
    """Log-mel of every whole frame, not normalised. samples: (n,) 16 kHz. Returns (frames, mels) float32."""
    n_frames = config.frames_in(samples.size)
    if n_frames == 0:
        return np.zeros((0, config.n_mels), np.float32)
    step = samples.strides[0]
    # As sliding_window_view, which takes three times as long to say so.
    strided = np.lib.stride_tricks.as_strided(
        samples, (n_frames, config.frame_samples), (config.hop_samples * step, step), writeable=False
    )
    frames = strided.astype(np.float64)  # (frames, 400)
    frames -= frames.sum(axis=1, keepdims=True) / config.frame_samples
    emphasised = np.empty_like(frames)
    np.multiply(frames[:, :-1], -config.preemphasis, out=emphasised[:, 1:])
    emphasised[:, 1:] += frames[:, 1:]
    emphasised[:, 0] = frames[:, 0] * (1 - config.preemphasis)
    emphasised *= _window(config.frame_samples)
    spectrum = np.fft.rfft(emphasised, config.fft_samples, axis=1)  # (frames, 257)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    mel = power @ mel_filters(config)  # (frames, mels)
    np.maximum(mel, config.mel_floor, out=mel)
    return np.log(mel, out=mel).astype(np.float32)


def normalised_window(log_mels: Float32, n_frames: int, config: LogMelConfig) -> Float32:
    """The newest ``n_frames`` frames; a shorter clip is right-padded with 0 *before* normalisation, as
    ``ASTFeatureExtractor`` does. log_mels: (frames, mels). Returns (n_frames, mels) float32."""
    window = log_mels[-n_frames:]
    padded = np.zeros((n_frames, config.n_mels), np.float32)
    padded[: len(window)] = window
    return (padded - np.float32(config.mean)) / np.float32(2 * config.std)


class StreamingLogMel:
    """Incremental log-mel: push samples as they come, get the frames that they completed.

    Equal to ``log_mel`` of the whole, however the samples are cut. Keeps less than one frame of samples.
    """

    def __init__(self, config: LogMelConfig) -> None:
        self.config = config
        self._tail = np.zeros(0, np.float32)  # samples from the start of the next frame on

    def push(self, samples: Float32) -> Float32:
        """samples: (n,) 16 kHz. Returns the new frames, (k, mels) float32, k may be 0."""
        pending = np.concatenate([self._tail, samples])
        frames = log_mel(pending, self.config)
        self._tail = pending[len(frames) * self.config.hop_samples :].copy()
        return frames


class StreamingWindow:
    """``normalised_window`` of a stream's log-mel: each frame is computed and normalised once, and the window is a view of where it lies.

    The frames go through an array of two windows' length; when it is full the newest window moves to its front, once in a window's time,
    so that what a hop costs does not depend on the window's length.
    """

    def __init__(self, n_frames: int, config: LogMelConfig) -> None:
        self._n, self._stream = n_frames, StreamingLogMel(config)
        self._rows = normalised_window(np.zeros((0, config.n_mels), np.float32), 2 * n_frames, config)
        self._end = 0

    def push(self, samples: Float32) -> None:
        """samples: (n,) 16 kHz, n may be longer than the window."""
        frames = self._stream.push(samples)[-self._n :]
        if self._end + len(frames) > len(self._rows):
            kept = self._n - len(frames)
            self._rows[:kept] = self._rows[self._end - kept : self._end].copy()
            self._end = kept
        config = self._stream.config
        self._rows[self._end : self._end + len(frames)] = normalised_window(frames, len(frames), config)
        self._end += len(frames)

    @property
    def newest(self) -> Float32:
        """(n_frames, mels), right-padded as ``normalised_window`` does while the stream is shorter. A view: it changes with the next ``push``."""
        return self._rows[: self._n] if self._end < self._n else self._rows[self._end - self._n : self._end]
