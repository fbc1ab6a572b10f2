"""The audio front end: log-mel against an independent oracle, a stream against the whole, resampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor
from transformers.utils import is_speech_available

from vaemotion.contract import audio
from vaemotion.contract.audio import (
    AST_LOG_MEL,
    SAMPLE_RATE_HZ,
    WHISPER_LOG_MEL,
    LogMelConfig,
    StreamingLogMel,
    StreamingWindow,
    downmix,
    hertz_to_mel,
    log_mel,
    normalized_window,
    resample,
    sound_window,
)
from vaemotion.contract.settings import Impossible

TINY = LogMelConfig()


def tone(
    hertz: float, duration_s: float, rate_hz: int = SAMPLE_RATE_HZ, amplitude: float = 0.5
) -> np.ndarray:
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def music(duration_s: float, seed: int = 0) -> np.ndarray:
    """Make tones, noise, silence and a constant offset: every branch of the log-mel."""
    rng = np.random.default_rng(seed)
    samples = tone(220, duration_s) + tone(3100, duration_s, amplitude=0.2)
    samples += (0.05 * rng.standard_normal(samples.size) + 0.1).astype(np.float32)
    samples[samples.size // 3 : samples.size // 2] = 0.0
    return samples


@given(cuts=st.lists(st.integers(0, 9000), max_size=12), config=st.sampled_from([TINY, AST_LOG_MEL]))
@settings(max_examples=60, deadline=None)
def test_incremental_equals_whole_however_the_samples_are_cut(cuts: list[int], config: LogMelConfig) -> None:
    samples = music(9000 / SAMPLE_RATE_HZ)
    stream = StreamingLogMel(config)
    pieces = [stream.push(piece) for piece in np.split(samples, sorted(cuts))]
    whole = log_mel(samples, config)
    streamed = np.concatenate(pieces)
    assert streamed.shape == whole.shape == (config.frames_in(9000), config.n_mels)
    assert np.abs(streamed - whole).max() <= 1e-6


def newest_window(heard: np.ndarray, n_frames: int, config: LogMelConfig, padding: float) -> np.ndarray:
    """Compute the window of the newest whole frames from their samples alone."""
    newest = config.frames_in(heard.size)
    oldest = max(0, newest - n_frames)
    first = oldest * config.hop_samples
    return sound_window(heard[first : first + config.samples_for(newest - oldest)], n_frames, config, padding)


@settings(max_examples=100, deadline=None)
@given(
    blocks=st.lists(st.integers(0, 4000), max_size=40),
    n_frames=st.integers(1, 30),
    config_and_padding=st.sampled_from([(TINY, 0.0), (TINY, TINY.silence), (WHISPER_LOG_MEL, 0.0)]),
)
def test_a_streams_window_is_that_of_everything_so_far(
    blocks: list[int], n_frames: int, config_and_padding: tuple[LogMelConfig, float]
) -> None:
    config, padding = config_and_padding
    stream, heard = StreamingWindow(n_frames, config, padding), np.zeros(0, np.float32)
    sound = music(10.0)
    for block in blocks:
        samples = sound[heard.size : heard.size + block]
        stream.push(samples)
        heard = np.concatenate([heard, samples])
        np.testing.assert_allclose(stream.newest, newest_window(heard, n_frames, config, padding), atol=1e-5)
        assert stream.n_samples == heard.size
        assert stream.newest.flags.c_contiguous


def test_of_whispers_window_only_new_frames_and_those_at_its_ends_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[int] = []
    whisper_frames = audio._whisper_frames
    monkeypatch.setattr(
        audio, "_whisper_frames", lambda cut, config: computed.append(len(cut)) or whisper_frames(cut, config)
    )
    stream, sound = StreamingWindow(1000, WHISPER_LOG_MEL), music(12.0)
    stream.push(sound[: 11 * SAMPLE_RATE_HZ])
    computed.clear()
    stream.push(sound[11 * SAMPLE_RATE_HZ :][:1600])  # 100 ms, 10 hops
    _ = stream.newest
    assert sum(computed) == 10 + 3  # 2 frames begin before the window, 1 ends after it


def test_a_frame_comes_with_its_last_sample_and_not_before() -> None:
    stream = StreamingLogMel(TINY)
    samples = music(0.1)
    assert len(stream.push(samples[:399])) == 0
    assert len(stream.push(samples[399:400])) == 1
    assert len(stream.push(samples[400:719])) == 0
    assert len(stream.push(samples[719:720])) == 1


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # of AST's own 128 bins
@pytest.mark.parametrize("n_samples", [16_000, 163_840, 170_000])
def test_the_log_mel_is_asts(n_samples: int) -> None:
    samples = music(n_samples / SAMPLE_RATE_HZ)[:n_samples]
    extractor = ASTFeatureExtractor()
    theirs = np.asarray(
        extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_values"][0]
    )
    # The extractor keeps a longer clip's first frames, ours the newest: give ours the frames that it reads.
    ours = normalized_window(
        log_mel(samples, AST_LOG_MEL)[: extractor.max_length], extractor.max_length, AST_LOG_MEL
    )
    difference = np.abs(ours - theirs)
    branch = "torchaudio" if is_speech_available() else "NumPy"
    largest = f"max {difference.max():.2e}, mean {difference.mean():.2e}"
    print(f"\nAST parity, {branch} branch, {n_samples} samples: {largest}")
    assert ours.shape == theirs.shape == (1024, 128)
    assert difference.max() <= 1e-5


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # of 128 bins
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("n_samples", [160, 12_320, 159_840, 160_000])
def test_the_log_mel_is_whispers(n_samples: int, n_mels: int) -> None:
    """Shorter sounds are filled up with silence. Whisper's own 30 s work alike, in three times the time."""
    samples = music(10.0)[:n_samples]
    extractor = WhisperFeatureExtractor(feature_size=n_mels, chunk_length=10)
    theirs = extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_features"][0].T
    ours = sound_window(samples, 1000, replace(WHISPER_LOG_MEL, n_mels=n_mels))
    difference = np.abs(ours - theirs)
    print(f"\nWhisper parity, {n_samples} samples: max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert ours.shape == theirs.shape == (1000, n_mels)
    assert difference.max() <= 1e-4


def test_whispers_silence_is_its_floor_in_a_full_window_and_in_an_empty_one() -> None:
    empty, silent = StreamingWindow(20, WHISPER_LOG_MEL), StreamingWindow(20, WHISPER_LOG_MEL)
    silent.push(np.zeros(5000, np.float32))
    assert np.array_equal(empty.newest, silent.newest)
    np.testing.assert_allclose(empty.newest, (-10 + 4) / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kind": "htk"}, "kind must be 'kaldi' or 'whisper', got 'htk'"), ({"preemphasis": 0.97}, "must be 0")],
)
def test_a_log_mel_that_no_kind_has_is_refused(wrong: dict[str, str | float], message: str) -> None:
    with pytest.raises(Impossible, match=message):
        replace(WHISPER_LOG_MEL, **wrong)


@pytest.mark.parametrize("padding", [0.0, TINY.silence])
def test_padding_stands_on_the_right_and_is_normalized_like_sound(padding: float) -> None:
    mel = log_mel(music(0.2), TINY)
    window = normalized_window(mel, 150, TINY, padding)
    assert window.shape == (150, 64)
    np.testing.assert_allclose(window[: len(mel)], (mel - TINY.mean) / (2 * TINY.std), atol=1e-6)
    np.testing.assert_allclose(window[len(mel) :], (padding - TINY.mean) / (2 * TINY.std), atol=1e-6)


def test_padding_with_silence_is_what_digital_silence_measures() -> None:
    mel = log_mel(np.zeros(16_000, np.float32), TINY)
    padded = normalized_window(mel[:10], len(mel), TINY, TINY.silence)
    assert np.array_equal(padded, normalized_window(mel, len(mel), TINY))


def test_of_a_longer_clip_the_newest_frames_are_kept() -> None:
    mel = log_mel(music(1.0), TINY)
    np.testing.assert_allclose(
        normalized_window(mel, 7, TINY), (mel[-7:] - TINY.mean) / (2 * TINY.std), atol=1e-6
    )


def test_silence_is_finite_and_lies_at_the_floor() -> None:
    mel = log_mel(np.zeros(1000, np.float32), TINY)
    np.testing.assert_allclose(mel, np.log(TINY.mel_floor), rtol=1e-6)


def test_a_constant_offset_changes_nothing() -> None:
    samples = tone(500, 0.2)
    assert np.abs(log_mel(samples + np.float32(0.25), TINY) - log_mel(samples, TINY)).max() < 0.02


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 2500.0, 6000.0])
def test_a_tone_lands_in_its_mel_bin(hertz: float) -> None:
    loudest = int(log_mel(tone(hertz, 0.3), TINY).mean(0).argmax())
    low, high = hertz_to_mel(TINY.low_hz), hertz_to_mel(TINY.high_hz)
    expected = (hertz_to_mel(hertz) - low) / (high - low) * (TINY.n_mels + 1) - 1
    assert abs(loudest - expected) <= 1


@given(
    n_frames=st.integers(0, 500),
    config=st.sampled_from([TINY, AST_LOG_MEL, LogMelConfig(hop_samples=400), WHISPER_LOG_MEL]),
)
@settings(max_examples=100, deadline=None)
def test_samples_for_is_the_fewest_samples_that_hold_the_frames(n_frames: int, config: LogMelConfig) -> None:
    n_samples = config.samples_for(n_frames)
    assert config.frames_in(n_samples) == n_frames
    if n_frames:
        assert config.frames_in(n_samples - 1) == n_frames - 1


@given(n_samples=st.integers(0, 3000), config=st.sampled_from([TINY, WHISPER_LOG_MEL]))
@settings(max_examples=40, deadline=None)
def test_frames_in_counts_what_log_mel_returns(n_samples: int, config: LogMelConfig) -> None:
    frames = log_mel(np.zeros(n_samples, np.float32), config)
    assert frames.shape == (config.frames_in(n_samples), config.n_mels)


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 44_100, 48_000])
def test_resampling_keeps_length_pitch_and_energy(rate_hz: int) -> None:
    resampled = resample(tone(1000, 1.0, rate_hz), rate_hz)
    assert resampled.dtype == np.float32
    assert abs(resampled.size - SAMPLE_RATE_HZ) <= 1
    inside = slice(800, 15_200)  # the filter rings at the ends
    assert np.abs(resampled[inside] - tone(1000, 1.0)[inside]).max() < 1e-3


def test_what_16_khz_cannot_carry_is_rejected_and_not_folded_down() -> None:
    aliased = resample(tone(11_000, 1.0, 48_000), 48_000)  # would fold to 5 kHz
    assert np.sqrt((aliased[800:-800] ** 2).mean()) < 1e-4


def test_16_khz_passes_untouched_and_nothing_stays_nothing() -> None:
    samples = music(0.1)
    assert np.array_equal(resample(samples, SAMPLE_RATE_HZ), samples)
    assert resample(np.zeros(0, np.float32), 44_100).shape == (0,)


@pytest.mark.parametrize("rate_hz", [0, -44_100])
def test_an_impossible_rate_is_named(rate_hz: float) -> None:
    with pytest.raises(ValueError, match=f"rate_hz.*{rate_hz}"):
        resample(music(0.1), rate_hz)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_downmix_is_the_mean_of_all_channels(channels: int) -> None:
    signal = np.random.default_rng(0).standard_normal((1000, channels)).astype(np.float32)
    mixed = downmix(signal)
    assert mixed.shape == (1000,)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(
        mixed, sum(signal[:, c].astype(np.float64) for c in range(channels)) / channels, atol=1e-6
    )


def test_downmix_leaves_one_channel_alone_and_refuses_a_third_axis() -> None:
    samples = music(0.1)
    assert np.array_equal(downmix(samples), samples)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        downmix(np.zeros((2, 3, 4), np.float32))
