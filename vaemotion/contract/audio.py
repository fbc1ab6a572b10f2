"""Audio front end: downmix, resampling to 16 kHz, and log-mel of a whole clip or of a stream.

In: samples at any rate and channel count. Out: log-mel frames, (frames, mels) float32.

The log-mel is Kaldi's filter bank as ``ASTFeatureExtractor`` of transformers computes it in NumPy: frames of
25 ms without centering, DC offset removed, pre-emphasis, symmetric Hann window, power spectrum, triangular
Kaldi-mel filters, natural logarithm. Frame i covers samples [i * hop, i * hop + frame). It needs no later
samples, so it can be computed as soon as its last sample has arrived.
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
    """Constants of the log-mel; the defaults are those of ``vaemotion-tiny``.

    ``mean`` and ``std`` normalize the log-mel as AST does: (x - mean) / (2 * std).
    """

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
        """Seconds from one frame to the next."""
        return self.hop_samples / SAMPLE_RATE_HZ

    @property
    def silence(self) -> float:
        """The log-mel of digital silence."""
        return math.log(self.mel_floor)

    def frames_in(self, n_samples: int) -> int:
        """Return the number of whole frames in ``n_samples``."""
        if n_samples < self.frame_samples:
            return 0
        return 1 + (n_samples - self.frame_samples) // self.hop_samples

    def samples_for(self, n_frames: int) -> int:
        """Return the smallest number of samples with ``n_frames`` whole frames."""
        return 0 if n_frames == 0 else (n_frames - 1) * self.hop_samples + self.frame_samples


AST_LOG_MEL = LogMelConfig(n_mels=128, hop_samples=160)


def level_dbfs(samples: npt.NDArray[np.float32]) -> float:
    """Return the level of at least one sample in dB relative to a full-scale sine, without the DC offset.

    samples: any shape, full scale ±1. Returns minus infinity for digital silence. Source: AES17-2020.
    """
    rms = float(np.std(samples, dtype=np.float64))
    return 20 * math.log10(math.sqrt(2) * rms) if rms > 0 else -math.inf


def downmix(samples: npt.NDArray[np.floating]) -> Float32:
    """Return the mean of the channels, (n,) float32. samples: (n,) or (n, channels)."""
    if samples.ndim == 1:
        return np.ascontiguousarray(samples, np.float32)
    if samples.ndim != 2:
        raise ValueError(f"samples must be (n,) or (n, channels), got shape {samples.shape}")
    return samples.mean(axis=1, dtype=np.float64).astype(np.float32)


def resample(samples: Float32, rate_hz: float) -> Float32:
    """Resample one channel to 16 kHz with soxr's HQ recipe. samples: (n,). Returns (m,) float32."""
    if rate_hz <= 0:
        raise ValueError(f"rate_hz must be positive, got {rate_hz}")
    if rate_hz == SAMPLE_RATE_HZ or samples.size == 0:
        return np.ascontiguousarray(samples, np.float32)
    resampled = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ, quality="HQ")  # pyright: ignore
    return np.asarray(resampled, np.float32)


class StreamingResampler:
    """``resample`` for a stream: ``push`` blocks as they arrive, ``finish`` at the end."""

    def __init__(self, rate_hz: float) -> None:
        if rate_hz <= 0:
            raise ValueError(f"rate_hz must be positive, got {rate_hz}")
        self._stream = (
            None
            if rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        )

    def push(self, samples: Float32) -> Float32:
        """Resample a block. samples: (n,) at ``rate_hz``. Returns (m,) float32 at 16 kHz, m may be 0."""
        return samples if self._stream is None else self._chunk(samples, last=False)

    def finish(self) -> Float32:
        """End the stream. Returns the samples that the filter still holds, (m,) float32."""
        empty = np.zeros(0, np.float32)
        return empty if self._stream is None else self._chunk(empty, last=True)

    def _chunk(self, samples: Float32, *, last: bool) -> Float32:
        assert self._stream is not None
        return np.asarray(self._stream.resample_chunk(samples, last=last), np.float32)  # pyright: ignore


def hertz_to_mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert frequencies to Kaldi's (HTK's) mel scale: 1127 ln(1 + f / 700)."""
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


@lru_cache(maxsize=8)
def mel_filters(config: LogMelConfig) -> npt.NDArray[np.float64]:
    """Return Kaldi's mel filters, triangles on the mel axis, (fft // 2 + 1, mels).

    The bins' frequencies are ``linspace(0, nyquist, fft / 2)`` with a last bin of weight 0, as in
    ``transformers.audio_utils.mel_filter_bank(triangularize_in_mel_space=True)`` with AST's arguments.
    """
    lowest, highest = hertz_to_mel(config.low_hz), hertz_to_mel(config.high_hz)
    edges = np.linspace(lowest, highest, config.n_mels + 2)  # (mels + 2,)
    bin_hz = SAMPLE_RATE_HZ / config.fft_samples * np.arange(config.fft_samples // 2)
    bins = hertz_to_mel(bin_hz)[:, None]  # (fft // 2, 1)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (center - left), (right - bins) / (right - center))
    return np.pad(np.maximum(triangles, 0.0), ((0, 1), (0, 0)))


@lru_cache(maxsize=8)
def _window(frame_samples: int) -> npt.NDArray[np.float64]:
    return np.hanning(frame_samples)


def log_mel(samples: Float32, config: LogMelConfig) -> Float32:
    """Compute the log-mel of every whole frame, not normalized.

    samples: (n,) float32 at 16 kHz. Returns (frames, mels) float32.
    """
    n_frames = config.frames_in(samples.size)
    if n_frames == 0:
        return np.zeros((0, config.n_mels), np.float32)
    step = samples.strides[0]
    # The view that sliding_window_view gives, in a third of its time.
    strided = np.lib.stride_tricks.as_strided(
        samples, (n_frames, config.frame_samples), (config.hop_samples * step, step), writeable=False
    )
    frames = strided.astype(np.float64)  # (frames, frame_samples)
    frames -= frames.sum(axis=1, keepdims=True) / config.frame_samples
    emphasized = np.empty_like(frames)
    np.multiply(frames[:, :-1], -config.preemphasis, out=emphasized[:, 1:])
    emphasized[:, 1:] += frames[:, 1:]
    emphasized[:, 0] = frames[:, 0] * (1 - config.preemphasis)
    emphasized *= _window(config.frame_samples)
    spectrum = np.fft.rfft(emphasized, config.fft_samples, axis=1)  # (frames, fft // 2 + 1)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    mel = power @ mel_filters(config)  # (frames, mels)
    np.maximum(mel, config.mel_floor, out=mel)
    return np.log(mel, out=mel).astype(np.float32)


def normalized_window(
    log_mels: Float32, n_frames: int, config: LogMelConfig, padding: float = 0.0
) -> Float32:
    """Return the newest ``n_frames`` frames, normalized, (n_frames, mels) float32. log_mels: (frames, mels).

    A shorter clip is padded on the right with ``padding`` before it is normalized. ``ASTFeatureExtractor``
    pads with 0, which is loud; ``LogMelConfig.silence`` is quiet.
    """
    window = log_mels[-n_frames:]
    padded = np.full((n_frames, config.n_mels), padding, np.float32)
    padded[: len(window)] = window
    return (padded - np.float32(config.mean)) / np.float32(2 * config.std)


class StreamingLogMel:
    """``log_mel`` of a stream: the frames equal those of the whole, however the samples are cut.

    Keeps less than one frame of samples.
    """

    def __init__(self, config: LogMelConfig) -> None:
        self.config = config
        self._tail = np.zeros(0, np.float32)  # samples from the start of the next frame on

    def push(self, samples: Float32) -> Float32:
        """Add samples (n,) at 16 kHz. Returns the frames that they complete, (k, mels), k may be 0."""
        pending = np.concatenate([self._tail, samples])
        frames = log_mel(pending, self.config)
        self._tail = pending[len(frames) * self.config.hop_samples :].copy()
        return frames


class StreamingWindow:
    """``normalized_window`` of a stream's log-mel, in which each frame is computed and normalized once.

    The frames are appended to an array of two windows' length. When it is full, the newest window moves to
    its front. That happens once per window, so the cost of a hop does not depend on the window's length.
    """

    def __init__(self, n_frames: int, config: LogMelConfig, padding: float = 0.0) -> None:
        """Start with a window of ``padding`` (see ``normalized_window``)."""
        self._n, self._stream = n_frames, StreamingLogMel(config)
        nothing = np.zeros((0, config.n_mels), np.float32)
        self._rows = normalized_window(nothing, 2 * n_frames, config, padding)
        self._end = 0
        self.n_samples = 0  # pushed so far

    def push(self, samples: Float32) -> None:
        """Add samples (n,) at 16 kHz; n may be longer than the window."""
        self.n_samples += len(samples)
        frames = self._stream.push(samples)[-self._n :]
        if self._end + len(frames) > len(self._rows):
            kept = self._n - len(frames)
            self._rows[:kept] = self._rows[self._end - kept : self._end].copy()
            self._end = kept
        config = self._stream.config
        self._rows[self._end : self._end + len(frames)] = normalized_window(frames, len(frames), config)
        self._end += len(frames)

    @property
    def newest(self) -> Float32:
        """The newest window, (n_frames, mels), padded on the right while the stream is shorter.

        It is a view that changes with the next ``push``.
        """
        return self._rows[: self._n] if self._end < self._n else self._rows[self._end - self._n : self._end]
