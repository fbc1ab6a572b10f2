"""Procedural art is deterministic, its frames and sound share events, and each path has its own factors."""

from dataclasses import replace

import numpy as np
import pytest

from vaemotion.contract.emotions import EMOTIONS
from vaemotion.data.art.art import (
    AUDIBLE,
    FACTOR_NAMES,
    SAMPLE_RATE_HZ,
    SHARED,
    SPLITS,
    VISIBLE,
    Work,
    draw_frame,
    event_times,
    factor_values,
    labels_from_factors,
    oracle_ceilings,
    sample_work,
    synthesize,
    work_seed,
)
from vaemotion.data.art.contents import CONTENT_CLASSES


def _works(count: int, split: str = "train") -> list[Work]:
    return [sample_work(work_seed(split, index)) for index in range(count)]


def _with(work: Work, names: set[str]) -> Work:
    """Return the work with each named factor moved far away."""
    changed = {name: -0.8 if getattr(work.factors, name) > 0 else 0.8 for name in names}
    return replace(work, factors=replace(work.factors, **changed))


@pytest.mark.parametrize("content", CONTENT_CLASSES)
def test_same_arguments_same_art(content: str) -> None:
    work = sample_work(work_seed("train", 5), content)
    assert work == sample_work(work_seed("train", 5), content)
    assert work.content == content
    frame, sound = draw_frame(work, 0.7, 96), synthesize(work, 1.0)
    assert frame.shape == (96, 96, 3)
    assert frame.dtype == np.uint8
    assert sound.shape == (16_000,)
    assert sound.dtype == np.float32
    synthesize(sample_work(1), 1.0)  # a cache of another work must not change the result
    assert np.array_equal(frame, draw_frame(work, 0.7, 96))
    assert np.array_equal(sound, synthesize(work, 1.0))
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() <= 1.0
    assert not np.array_equal(frame, draw_frame(work, 1.0, 96))


@pytest.mark.parametrize("content", CONTENT_CLASSES)
def test_sound_can_start_anywhere_exactly(content: str) -> None:
    work = sample_work(work_seed("train", 11), content)
    whole = synthesize(work, 6.0)
    for start_s, duration_s in ((1.0, 5.0), (2.3125, 1.1), (4.000625, 1.5)):
        first, count = round(start_s * SAMPLE_RATE_HZ), round(duration_s * SAMPLE_RATE_HZ)
        part = synthesize(work, duration_s, start_s)
        np.testing.assert_array_equal(part, whole[first : first + count])


def test_splits_share_no_seed() -> None:
    seeds = [work_seed(split, index) for split in SPLITS for index in [*range(2000), 10**8 - 1, 10**8]]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ValueError, match="split"):
        work_seed("dev", 0)
    with pytest.raises(ValueError, match="content"):
        sample_work(1, "trumpet")


def test_labels_fill_the_square_and_follow_from_the_factors() -> None:
    works = _works(1500)
    labels = np.array([(work.valence, work.arousal) for work in works])
    assert np.abs(labels).max() <= 1.0
    assert (np.percentile(labels, 3, axis=0) < -0.75).all()
    assert (np.percentile(labels, 97, axis=0) > 0.75).all()
    assert (np.abs(labels) >= 1.0).mean() < 0.05
    assert abs(np.corrcoef(labels.T)[0, 1]) < 0.3
    factors = np.array([factor_values(work) for work in works])
    np.testing.assert_allclose(labels_from_factors(factors), labels)
    assert np.abs(factors).max() <= 1.0
    distributions = np.array([work.emotion_distribution for work in works])
    assert distributions.shape == (1500, len(EMOTIONS))
    np.testing.assert_allclose(distributions.sum(axis=1), 1.0, atol=1e-6)
    assert {work.content for work in works} == set(CONTENT_CLASSES)


def test_each_factor_is_perceptible_on_its_paths_only() -> None:
    for work in _works(8):
        heard_only = _with(work, set(AUDIBLE) - set(SHARED))
        assert np.array_equal(draw_frame(work, 0.9), draw_frame(heard_only, 0.9))
        seen_only = _with(work, set(VISIBLE) - set(SHARED))
        assert np.array_equal(synthesize(work, 0.5), synthesize(seen_only, 0.5))
        for name in FACTOR_NAMES:
            changed = _with(work, {name})
            same_frame = np.array_equal(draw_frame(work, 0.9), draw_frame(changed, 0.9))
            assert same_frame == (name not in VISIBLE), name
            same_sound = np.array_equal(synthesize(work, 0.5), synthesize(changed, 0.5))
            assert same_sound == (name not in AUDIBLE), name


def test_every_three_seconds_hold_two_events_and_the_first_comes_within_600_ms() -> None:
    for content in CONTENT_CLASSES:
        for work in (sample_work(work_seed("test", index), content) for index in range(20)):
            index, times_s = event_times(work, -1.0, 12.0)
            assert (np.diff(times_s) > 0).all()
            assert (np.diff(index) == 1).all()
            assert 0.0 <= times_s[index == 0][0] < 0.6
            gaps_s = times_s[2:] - times_s[:-2]
            assert gaps_s.max() <= 2.7
            assert len(event_times(work, 2.0, 5.0)[0]) >= 2


@pytest.mark.parametrize("content", ["drum", "clock tick", "dog bark", "bell", "piano"])
def test_frames_move_at_the_onset_of_a_sound(content: str) -> None:
    """Check that loudness and frame change rise at an event, and not half a period later."""
    base = sample_work(work_seed("train", 3), content)
    work = replace(base, factors=replace(base.factors, tempo=-0.4, energy=0.9, roughness=-1.0))
    times_s = event_times(work, 1.0, 6.0)[1]
    halfway_s = (times_s[1:] + times_s[:-1]) / 2

    def rise(at_s: np.ndarray) -> float:
        near = [(synthesize(work, 0.06, t - 0.06), synthesize(work, 0.06, t)) for t in at_s]
        return float(np.mean([np.sqrt(np.mean(b**2)) - np.sqrt(np.mean(a**2)) for a, b in near]))

    def jump(at_s: np.ndarray) -> float:
        pairs = [(draw_frame(work, t - 0.01, 96), draw_frame(work, t + 0.01, 96)) for t in at_s]
        return float(np.mean([np.abs(a.astype(int) - b.astype(int)).mean() for a, b in pairs]))

    assert rise(times_s[:-1]) > 3 * max(rise(halfway_s), 0.002)
    assert jump(times_s[:-1]) > 1.5 * jump(halfway_s)


def test_the_ceiling_of_both_paths_exceeds_that_of_each() -> None:
    ceilings = oracle_ceilings(count=600)
    for label in ("valence", "arousal"):
        assert ceilings["audio-visual"][label] >= 0.99
        for path in ("audio", "visual"):
            assert 0.85 < ceilings[path][label] < 0.98
            assert ceilings[path][label] < ceilings["audio-visual"][label]
