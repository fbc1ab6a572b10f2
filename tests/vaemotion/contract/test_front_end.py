"""The front end: from a clip to the encoders' inputs at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaemotion.contract.audio import SAMPLE_RATE_HZ, WHISPER_LOG_MEL, LogMelConfig, log_mel
from vaemotion.contract.front_end import (
    PATHS,
    SILENT_PADDING,
    ZERO_PADDING,
    Clip,
    EncoderInputs,
    FrontEnd,
    window_at,
    window_ends_s,
)
from vaemotion.contract.image import ImageConfig, prepare_frame
from vaemotion.contract.windows import WindowConfig

FRONT_END = FrontEnd(
    log_mel=LogMelConfig(n_mels=16),
    image=ImageConfig(side_px=4),
    windows=WindowConfig(0.1, 0.2, frames=4, language_frames=2, audio_window_s=1.0),
)


def frame(level: int) -> np.ndarray:
    return np.full((4, 4, 3), level, np.uint8)


def shown_levels(inputs: EncoderInputs) -> list[int]:
    """Return the frame number at each place of the window."""
    return [round((float(pixels.mean()) + 1) * 127.5) for pixels in inputs.pixels]


def clip_of(duration_s: float, frames_per_s: float, seed: int = 0) -> Clip:
    """Make a clip whose frame number k is gray level k everywhere, with noise as its sound."""
    count = int(duration_s * frames_per_s + 1e-9) + 1
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * SAMPLE_RATE_HZ))
    times_s = tuple(k / frames_per_s for k in range(count))
    return Clip(tuple(frame(k) for k in range(count)), times_s, samples.astype(np.float32))


def cut(clip: Clip, now_s: float) -> Clip:
    """Cut off all that arrives after ``now_s``."""
    n = sum(time_s <= now_s + 1e-6 for time_s in clip.frame_times_s)
    assert clip.samples is not None
    return Clip(clip.frames[:n], clip.frame_times_s[:n], clip.samples[: round(now_s * SAMPLE_RATE_HZ)])


def test_a_path_gets_its_modalities_and_no_other() -> None:
    clip = clip_of(3.0, 10)
    heard, seen, both = (window_at(clip, 2.5, path, FRONT_END) for path in PATHS)
    assert heard.pixels.shape == (0, 3, 4, 4)
    assert heard.frame_ages_s.shape == (0,)
    assert seen.log_mel.shape == (0, 50, 16)
    assert both.pixels.shape == (4, 3, 4, 4)
    assert both.log_mel.shape == (1, 50, 16)
    assert np.array_equal(both.pixels, seen.pixels)
    assert np.array_equal(both.log_mel, heard.log_mel)


def test_the_newest_frame_stands_last_and_ages_are_its_distance_from_now() -> None:
    inputs = window_at(clip_of(3.0, 10), 2.53, "visual", FRONT_END)
    assert shown_levels(inputs) == [19, 21, 23, 25]
    np.testing.assert_allclose(inputs.frame_ages_s, [0.63, 0.43, 0.23, 0.03], atol=1e-6)
    assert np.array_equal(inputs.pixels[-1], prepare_frame(frame(25), FRONT_END.image))


def test_at_the_start_of_a_clip_the_window_is_shorter_instead_of_padded() -> None:
    inputs = window_at(clip_of(3.0, 10), 0.35, "visual", FRONT_END)
    assert shown_levels(inputs) == [1, 3]
    np.testing.assert_allclose(inputs.frame_ages_s, [0.25, 0.05], atol=1e-6)


def test_a_grid_point_shows_the_newest_frame_at_or_before_it_and_never_a_later_one() -> None:
    inputs = window_at(clip_of(2.0, 24), 1.0, "visual", FRONT_END)  # grid points 0.4, 0.6, 0.8, 1.0
    assert shown_levels(inputs) == [int(time_s * 24 + 1e-6) for time_s in (0.4, 0.6, 0.8, 1.0)]


def test_a_lone_image_is_one_token_group_of_age_0() -> None:
    clip = Clip((frame(77),), (0.0,))
    inputs = window_at(clip, clip.duration_s, "visual", FRONT_END)
    assert clip.duration_s == 0
    assert shown_levels(inputs) == [77]
    assert inputs.frame_ages_s.tolist() == [0.0]


def test_an_image_with_sound_is_shown_once_and_ages_with_the_sound() -> None:
    clip = Clip((frame(77),), (0.0,), clip_of(2.0, 1).samples)
    inputs = window_at(clip, clip.duration_s, "audio-visual", FRONT_END)
    assert shown_levels(inputs) == [77]
    np.testing.assert_allclose(inputs.frame_ages_s, [2.0])


def test_before_the_first_frame_that_frame_is_all_there_is() -> None:
    clip = Clip((frame(5), frame(6)), (1.0, 1.5), clip_of(2.0, 1).samples)
    inputs = window_at(clip, 0.4, "audio-visual", FRONT_END)
    assert shown_levels(inputs) == [5]
    assert (inputs.frame_ages_s >= 0).all()


def test_sound_is_the_newest_window_on_the_clips_own_hop_grid() -> None:
    clip, config = clip_of(3.0, 10), FRONT_END.log_mel
    assert clip.samples is not None
    newest = config.frames_in(round(2.345 * SAMPLE_RATE_HZ))
    expected = (log_mel(clip.samples, config)[newest - 50 : newest] - config.mean) / (2 * config.std)
    inputs = window_at(clip, 2.345, "audio", FRONT_END)
    np.testing.assert_allclose(inputs.log_mel[0], expected, atol=1e-6)


@pytest.mark.parametrize("n_samples", [0, 1, 399, 400, 5000])
@pytest.mark.parametrize("version", [ZERO_PADDING, SILENT_PADDING])
def test_short_sound_is_padded_on_the_right_as_its_version_says(n_samples: int, version: int) -> None:
    front_end, config = replace(FRONT_END, version=version), FRONT_END.log_mel
    samples = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    clip = Clip(samples=samples)
    inputs = window_at(clip, clip.duration_s, "audio", front_end)
    window, heard = inputs.log_mel, config.frames_in(n_samples)
    padding = {ZERO_PADDING: 0.0, SILENT_PADDING: np.log(config.mel_floor)}[version]
    assert window.shape == (1, 50, 16)
    assert inputs.sound_s == pytest.approx(n_samples / SAMPLE_RATE_HZ)
    np.testing.assert_allclose(window[0, heard:], (padding - config.mean) / (2 * config.std), atol=1e-6)
    np.testing.assert_allclose(
        window[0, :heard], (log_mel(samples, config) - config.mean) / (2 * config.std), atol=1e-6
    )


@given(
    milliseconds=st.integers(0, 3000),
    frames_per_s=st.sampled_from([5, 10, 12.5, 24, 25, 30, 60]),
    path=st.sampled_from(PATHS),
    log_mel=st.sampled_from([FRONT_END.log_mel, WHISPER_LOG_MEL]),
)
@settings(max_examples=60, deadline=None)
def test_a_window_of_a_longer_clip_equals_that_of_the_clip_cut_there(
    milliseconds: int, frames_per_s: float, path: str, log_mel: LogMelConfig
) -> None:
    now_s, clip, front_end = (
        milliseconds / 1000,
        clip_of(3.0, frames_per_s),
        replace(FRONT_END, log_mel=log_mel),
    )
    whole, stream = (window_at(c, now_s, path, front_end) for c in (clip, cut(clip, now_s)))
    assert shown_levels(whole) == shown_levels(stream)
    np.testing.assert_array_equal(whole.frame_ages_s, stream.frame_ages_s)
    np.testing.assert_allclose(whole.log_mel, stream.log_mel, atol=1e-6)


def test_the_clip_ends_with_the_longer_of_frames_and_sound() -> None:
    assert Clip((frame(0), frame(1)), (0.0, 4.0), np.zeros(16_000, np.float32)).duration_s == 4.0
    assert Clip((frame(0),), (0.0,), np.zeros(16_000, np.float32)).duration_s == 1.0


@pytest.mark.parametrize(
    ("clip", "path", "missing"),
    [
        (Clip((frame(0),), (0.0,)), "audio", "sound"),
        (Clip((frame(0),), (0.0,)), "audio-visual", "sound"),
        (Clip(samples=np.zeros(16_000, np.float32)), "visual", "frames"),
        (Clip(samples=np.zeros(16_000, np.float32)), "audio-visual", "frames"),
    ],
)
def test_a_path_that_the_clip_cannot_serve_is_refused(clip: Clip, path: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"'{path}' needs {missing}"):
        window_at(clip, 0.0, path, FRONT_END)


def test_an_unknown_path_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"audio-visual.*'both'"):
        window_at(clip_of(1.0, 10), 1.0, "both", FRONT_END)


def test_a_window_holds_no_more_sound_than_fits() -> None:
    clip = clip_of(3.0, 10)
    assert [window_at(clip, now_s, "audio", FRONT_END).sound_s for now_s in (0.25, 1.0, 2.5, 9.0)] == [
        0.25,
        1.0,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    "front_end",
    [
        replace(FRONT_END, version=ZERO_PADDING),
        replace(FRONT_END, version=SILENT_PADDING),
        replace(FRONT_END, log_mel=WHISPER_LOG_MEL),
    ],
)
def test_the_front_end_survives_its_dictionary(front_end: FrontEnd) -> None:
    assert FrontEnd.from_dict(front_end.to_dict()) == front_end


def test_what_was_stored_before_there_were_kinds_of_log_mel_is_kaldis() -> None:
    values = FRONT_END.to_dict()
    del values["log_mel"]["kind"]
    assert FrontEnd.from_dict(values) == FRONT_END


def test_what_was_stored_before_there_were_versions_is_of_version_1() -> None:
    values = FRONT_END.to_dict()
    del values["version"]
    assert FrontEnd.from_dict(values) == replace(FRONT_END, version=ZERO_PADDING)


def test_a_version_of_a_later_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"front_end\.version must be 1 or 2, got 3"):
        FrontEnd.from_dict({**FRONT_END.to_dict(), "version": 3})


def test_without_calibration_a_stream_is_heard_from_where_its_models_training_began() -> None:
    assert replace(FRONT_END, version=ZERO_PADDING).least_sound_s == 1.0  # filled windows
    assert replace(FRONT_END, version=SILENT_PADDING).least_sound_s == pytest.approx(1 / 3)


@pytest.mark.parametrize("part", ["log_mel", "image", "windows"])
def test_an_unknown_or_missing_constant_is_refused_by_name(part: str) -> None:
    values = FRONT_END.to_dict()
    values[part]["dither"] = 1.0
    with pytest.raises(ValueError, match=rf"front_end\.{part} has unknown fields: dither"):
        FrontEnd.from_dict(values)
    values = FRONT_END.to_dict()
    gone = next(iter(values[part]))
    del values[part][gone]
    with pytest.raises(ValueError, match=rf"front_end\.{part} lacks {gone}"):
        FrontEnd.from_dict(values)


def test_an_unknown_or_missing_part_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="touch"):
        FrontEnd.from_dict({**FRONT_END.to_dict(), "touch": {}})
    values = FRONT_END.to_dict()
    del values["image"]
    with pytest.raises(ValueError, match="image"):
        FrontEnd.from_dict(values)


def sounding_clip(duration_s: float, silent_from_s: float = 1e9) -> Clip:
    samples = (
        np.random.default_rng(0).uniform(-0.1, 0.1, round(duration_s * SAMPLE_RATE_HZ)).astype(np.float32)
    )
    samples[round(min(silent_from_s, duration_s) * SAMPLE_RATE_HZ) :] *= 1e-4
    return Clip((), (), samples)


@given(st.floats(0.1, 60.0))
def test_windows_hold_the_whole_clip_and_the_last_ends_with_it(duration_s: float) -> None:
    front_end = FrontEnd()
    length_s = front_end.windows.audio_window_s
    ends_s = window_ends_s(Clip((), (0.0, duration_s)), "visual", front_end)
    assert ends_s[-1] == pytest.approx(duration_s)
    assert ends_s == sorted(ends_s)
    assert all(b - a <= 0.8 * length_s for a, b in pairwise(ends_s))  # neighbours overlap
    assert ends_s[0] <= 1.25 * length_s  # hardly anything of the beginning is missed


def test_silent_windows_say_nothing_from_sound_alone_unless_all_are_silent() -> None:
    front_end = FrontEnd()  # windows of 3 s, full at 3.005 s
    assert window_ends_s(sounding_clip(6.0), "audio", front_end) == pytest.approx([3.005, 4.5025, 6.0])
    assert window_ends_s(sounding_clip(6.0, silent_from_s=1.0), "audio", front_end) == [3.005]
    assert window_ends_s(sounding_clip(6.0, silent_from_s=1.0), "audio-visual", front_end) == pytest.approx(
        [3.005, 4.5025, 6.0]
    )
    assert window_ends_s(sounding_clip(6.0, silent_from_s=0.0), "audio", front_end) == pytest.approx(
        [3.005, 4.5025, 6.0]
    )
