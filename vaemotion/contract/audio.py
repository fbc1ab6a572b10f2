"""Audio front end: downmix, resampling to 16 kHz, and log-mel of a whole clip or of a stream.

In: samples at any rate and channel count. Out: log-mel frames, (frames, mels) float32, natural logarithm.

There are two kinds of log-mel. "kaldi" is Kaldi's filter bank as ``ASTFeatureExtractor`` of transformers
computes it in NumPy: frames of 25 ms without centering, DC offset removed, pre-emphasis, symmetric Hann
window, power spectrum, triangular Kaldi-mel filters. Frame i covers samples [i * hop, i * hop + frame). It
needs no later samples, so it can be computed as soon as its last sample has arrived.

"whisper" is the log-mel of ``WhisperFeatureExtractor``: frames of 25 ms, periodic Hann window, power
spectrum, Slaney-mel filters; a window's values are raised to at least its maximum - 8 decades. Frame i is
centered at sample i * hop. At both ends of a window the samples are reflected, so that the frames there
depend on where the window begins and ends. The other frames need half a frame of later samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import soxr  # pyright: ignore[reportMissingTypeStubs]

from vaemotion.contract.settings import demand

SAMPLE_RATE_HZ = 16_000
KALDI, WHISPER = "kaldi", "whisper"  # kinds of log-mel
DECADE = math.log(10)
# A window of kind "whisper" holds no value further below its maximum.
WHISPER_RANGE = 8 * DECADE

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LogMelConfig:
    """Constants of the log-mel; the defaults are those of ``vaemotion-tiny``.

    ``mean`` and ``std`` normalize the log-mel as AST does: (x - mean) / (2 * std). ``kind``: "kaldi" or
    "whisper". Raises Impossible for another kind, and for a pre-emphasis of kind "whisper", which has none.
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
    kind: str = KALDI

    def __post_init__(self) -> None:
        demand(
            self,
            ("kind", self.kind in (KALDI, WHISPER), f"{KALDI!r} or {WHISPER!r}"),
            ("preemphasis", self.kind != WHISPER or self.preemphasis == 0, f"0 for kind {WHISPER!r}"),
        )

    @property
    def hop_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop_samples / SAMPLE_RATE_HZ

    @property
    def silence(self) -> float:
        """The log-mel of digital silence."""
        return math.log(self.mel_floor)

    def frames_in(self, n_samples: int) -> int:
        """Return the number of whole frames in ``n_samples``; of kind "whisper", of whole hops."""
        if self.kind == WHISPER:
            return n_samples // self.hop_samples
        if n_samples < self.frame_samples:
            return 0
        return 1 + (n_samples - self.frame_samples) // self.hop_samples

    def samples_for(self, n_frames: int) -> int:
        """Return the smallest number of samples with ``n_frames`` whole frames."""
        if self.kind == WHISPER:
            return n_frames * self.hop_samples
        return 0 if n_frames == 0 else (n_frames - 1) * self.hop_samples + self.frame_samples


AST_LOG_MEL = LogMelConfig(n_mels=128, hop_samples=160)
# (log10(x) + 4) / 4 of the authors is (ln(x) - mean) / (2 * std). Whisper large-v3 has 128 mels.
WHISPER_LOG_MEL = LogMelConfig(
    n_mels=80,
    hop_samples=160,
    frame_samples=400,
    fft_samples=400,
    low_hz=0.0,
    high_hz=8000.0,
    preemphasis=0.0,
    mel_floor=1e-10,
    mean=-4 * DECADE,
    std=2 * DECADE,
    kind=WHISPER,
)


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
    """Return the mel filters of a kind of log-mel, (fft // 2 + 1, mels)."""
    return _slaney_filters(config) if config.kind == WHISPER else _kaldi_filters(config)


def _kaldi_filters(config: LogMelConfig) -> npt.NDArray[np.float64]:
    """Return Kaldi's mel filters, triangles on the mel axis, (fft // 2 + 1, mels).

    The bins' frequencies are ``linspace(0, nyquist, fft / 2)`` with a last bin of weight 0, as in
    ``transformers.audio_utils.mel_filter_bank(triangularize_in_mel_space=True)`` with AST's arguments.
    """
    lowest, highest = hertz_to_mel(config.low_hz), hertz_to_mel(config.high_hz)
    edges = np.linspace(lowest, highest, config.n_mels + 2)  # (mels + 2,)
    bin_hz = SAMPLE_RATE_HZ / config.fft_samples * np.arange(config.fft_samples // 2)
    return np.pad(_triangles(hertz_to_mel(bin_hz), edges), ((0, 1), (0, 0)))


def _slaney_filters(config: LogMelConfig) -> npt.NDArray[np.float64]:
    """Return Slaney's mel filters, triangles of equal area in Hz, (fft // 2 + 1, mels).

    Mels are linear up to 1 kHz and logarithmic above. Source: Slaney 1998, "Auditory Toolbox", as in
    ``transformers.audio_utils.mel_filter_bank(norm="slaney", mel_scale="slaney")``.
    """
    knee_hz, knee_mel, mels_per_neper = 1000.0, 15.0, 27 / math.log(6.4)

    def to_mel(hertz: float) -> float:
        if hertz < knee_hz:
            return knee_mel * hertz / knee_hz
        return knee_mel + mels_per_neper * math.log(hertz / knee_hz)

    mels = np.linspace(to_mel(config.low_hz), to_mel(config.high_hz), config.n_mels + 2)
    logarithmic_hz = knee_hz * np.exp((mels - knee_mel) / mels_per_neper)
    edges_hz = np.where(mels < knee_mel, knee_hz * mels / knee_mel, logarithmic_hz)  # (mels + 2,)
    bin_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, config.fft_samples // 2 + 1)
    return _triangles(bin_hz, edges_hz) * 2 / (edges_hz[2:] - edges_hz[:-2])


def _triangles(bins: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return triangles of height 1 between ``edges`` (mels + 2,) at ``bins`` (n,), (n, mels)."""
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    at = bins[:, None]  # (n, 1)
    return np.maximum(np.minimum((at - left) / (center - left), (right - at) / (right - center)), 0.0)


@lru_cache(maxsize=8)
def _hann(frame_samples: int, kind: str) -> npt.NDArray[np.float64]:
    """Return a kind's Hann window, symmetric or (Whisper's) periodic, (frame_samples,)."""
    return np.hanning(frame_samples + 1)[:-1] if kind == WHISPER else np.hanning(frame_samples)


def log_mel(samples: Float32, config: LogMelConfig) -> Float32:
    """Compute the log-mel of every whole frame, not normalized.

    samples: (n,) float32 at 16 kHz. Returns (frames, mels) float32.
    """
    n_frames = config.frames_in(samples.size)
    if n_frames == 0:
        return np.zeros((0, config.n_mels), np.float32)
    if config.kind == WHISPER:
        reflected = np.pad(samples, config.frame_samples // 2, mode="reflect")
        return _whisper_frames(_cut(reflected, n_frames, config), config)
    return _kaldi_frames(_cut(samples, n_frames, config), config)


def _cut(samples: Float32, n_frames: int, config: LogMelConfig) -> Float32:
    """Return overlapping frames as a view, (n_frames, frame_samples)."""
    step = samples.strides[0]
    # The view that sliding_window_view gives, in a third of its time.
    return np.lib.stride_tricks.as_strided(
        samples, (n_frames, config.frame_samples), (config.hop_samples * step, step), writeable=False
    )


def _kaldi_frames(cut: Float32, config: LogMelConfig) -> Float32:
    """Compute the log-mel of frames of samples, (n, frame_samples) → (n, mels)."""
    frames = cut.astype(np.float64)
    frames -= frames.sum(axis=1, keepdims=True) / config.frame_samples
    emphasized = np.empty_like(frames)
    np.multiply(frames[:, :-1], -config.preemphasis, out=emphasized[:, 1:])
    emphasized[:, 1:] += frames[:, 1:]
    emphasized[:, 0] = frames[:, 0] * (1 - config.preemphasis)
    emphasized *= _hann(config.frame_samples, config.kind)
    return _log_mel_of(emphasized, config)


def _whisper_frames(cut: Float32, config: LogMelConfig) -> Float32:
    """Compute the log-mel of frames of samples, (n, frame_samples) → (n, mels)."""
    return _log_mel_of(cut * _hann(config.frame_samples, config.kind), config)


def _log_mel_of(frames: npt.NDArray[np.float64], config: LogMelConfig) -> Float32:
    """Compute the log-mel of windowed frames, (n, frame_samples) → (n, mels)."""
    spectrum = np.fft.rfft(frames, config.fft_samples, axis=1)  # (n, fft // 2 + 1)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    mel = power @ mel_filters(config)  # (n, mels)
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
    if config.kind == WHISPER:
        np.maximum(padded, padded.max() - np.float32(WHISPER_RANGE), out=padded)
    return (padded - np.float32(config.mean)) / np.float32(2 * config.std)


def sound_window(samples: Float32, n_frames: int, config: LogMelConfig, padding: float = 0.0) -> Float32:
    """Return the normalized log-mel of samples (n,), at most ``n_frames`` frames of them, (n_frames, mels).

    A shorter sound is padded on the right: its log-mel with ``padding``, of kind "whisper" its samples with
    silence, as ``WhisperFeatureExtractor`` does.
    """
    if config.kind == WHISPER:
        samples = np.pad(samples, (0, config.samples_for(n_frames) - samples.size))
    return normalized_window(log_mel(samples, config), n_frames, config, padding)


class StreamingLogMel:
    """``log_mel`` of kind "kaldi" of a stream: the frames equal those of the whole, however it is cut.

    Keeps less than one frame of samples.
    """

    def __init__(self, config: LogMelConfig) -> None:
        assert config.kind == KALDI
        self.config = config
        self._tail = np.zeros(0, np.float32)  # samples from the start of the next frame on

    def push(self, samples: Float32) -> Float32:
        """Add samples (n,) at 16 kHz. Returns the frames that they complete, (k, mels), k may be 0."""
        pending = np.concatenate([self._tail, samples])
        frames = log_mel(pending, self.config)
        self._tail = pending[len(frames) * self.config.hop_samples :].copy()
        return frames


class StreamingWindow:
    """``sound_window`` of a stream's newest whole frames, in which each frame is computed once.

    The cost of a hop does not depend on how long the stream is.
    """

    def __init__(self, n_frames: int, config: LogMelConfig, padding: float = 0.0) -> None:
        """Start with an empty window. ``padding``: see ``sound_window``."""
        self._window = (
            _CenteredWindow(n_frames, config)
            if config.kind == WHISPER
            else _CausalWindow(n_frames, config, padding)
        )
        self.n_samples = 0  # pushed so far

    def push(self, samples: Float32) -> None:
        """Add samples (n,) at 16 kHz; n may be longer than the window."""
        self.n_samples += len(samples)
        self._window.push(samples)

    @property
    def newest(self) -> Float32:
        """The newest window, (n_frames, mels), padded on the right while the stream is shorter.

        It may be a view that changes with the next ``push``.
        """
        return self._window.newest


class _CausalWindow:
    """The window of kind "kaldi", in which each frame is also normalized once.

    The frames are appended to an array of two windows' length. When it is full, the newest window moves to
    its front. That happens once per window, so the cost of a hop does not depend on the window's length.
    """

    def __init__(self, n_frames: int, config: LogMelConfig, padding: float) -> None:
        self._n, self._stream = n_frames, StreamingLogMel(config)
        nothing = np.zeros((0, config.n_mels), np.float32)
        self._rows = normalized_window(nothing, 2 * n_frames, config, padding)
        self._end = 0

    def push(self, samples: Float32) -> None:
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
        """The newest window as a view."""
        return self._rows[: self._n] if self._end < self._n else self._rows[self._end - self._n : self._end]


class _CenteredWindow:
    """The window of kind "whisper": inner frames are computed once, those at its ends for every window.

    Samples and their frames stand in arrays of two windows' length, frame i at sample i * hop. When they are
    full, the newest window moves to their front.
    """

    def __init__(self, n_frames: int, config: LogMelConfig) -> None:
        self._n, self._config, self._hop = n_frames, config, config.hop_samples
        self._half = config.frame_samples // 2
        self._edge = math.ceil(self._half / self._hop)  # frames at the left end that reach beyond it
        self._samples = np.zeros((2 * n_frames + 1) * self._hop, np.float32)
        self._rows = np.zeros((2 * n_frames + 1, config.n_mels), np.float32)
        self._end = self._rows_end = 0

    def push(self, samples: Float32) -> None:
        total = self._end + len(samples)
        if total > len(self._samples):
            samples = self._move(total // self._hop - self._n, samples)
        self._samples[self._end : self._end + len(samples)] = samples
        self._end += len(samples)
        first = max(self._rows_end, self._edge)
        whole = (self._end - self._half) // self._hop + 1 - first  # frames whose last sample has come
        if whole > 0:
            cut = _cut(self._samples[first * self._hop - self._half :], whole, self._config)
            self._rows[first : first + whole] = _whisper_frames(cut, self._config)
            self._rows_end = first + whole

    def _move(self, hops: int, samples: Float32) -> Float32:
        """Drop the oldest hops, and return what is left of new samples."""
        dropped = hops * self._hop
        rest, rows = max(0, self._end - dropped), max(0, self._rows_end - hops)
        self._samples[:rest] = self._samples[self._end - rest : self._end].copy()
        self._rows[:rows] = self._rows[self._rows_end - rows : self._rows_end].copy()
        unneeded = max(0, dropped - self._end)
        self._end, self._rows_end = rest, rows
        return samples[unneeded:]

    @property
    def newest(self) -> Float32:
        """The newest window, an array of its own."""
        newest = self._end // self._hop
        oldest = max(0, newest - self._n)
        held = newest - oldest
        rows = np.full((self._n, self._config.n_mels), self._config.silence, np.float32)
        inner_end = max(self._edge, (held * self._hop - self._half) // self._hop + 1)
        inner = slice(self._edge, inner_end)
        rows[inner] = self._rows[oldest:][inner]
        if held:
            beyond = range(inner_end, min(self._n, held + self._edge))
            at_ends = np.array([*range(min(self._n, self._edge)), *beyond])
            cut = self._cut_reflected(oldest * self._hop, newest * self._hop, at_ends)
            rows[at_ends] = _whisper_frames(cut, self._config)
        return normalized_window(rows, self._n, self._config)

    def _cut_reflected(self, start: int, end: int, frames: npt.NDArray[np.int_]) -> Float32:
        """Cut frames (k,) out of a window, (k, frame_samples). From ``end`` on it is silent."""
        places = frames[:, None] * self._hop - self._half + np.arange(self._config.frame_samples)
        period = 2 * (self._n * self._hop - 1)
        places %= period
        places = np.minimum(places, period - places)  # reflected at both ends of the window
        held = self._samples[start:end]
        return np.where(places < held.size, held[np.minimum(places, held.size - 1)], np.float32(0))
