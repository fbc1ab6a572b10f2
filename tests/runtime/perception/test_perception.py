"""Perception: a stream gives what the whole clip gives, and nothing is encoded twice."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.machine.threads import ThreadBudget
from runtime.messages import Sound
from runtime.perception.perception import STALE_S, Perception
from runtime.perception.predictor import DevicePredictor, Predictor, open_predictor
from runtime.stage_times import StageTimes
from tests.tiny import tiny_clip
from vaemotion.contract.front_end import SILENT_PADDING, ZERO_PADDING, Clip, window_at


@pytest.fixture(scope="module")
def predictor(small_bundle: Path) -> Generator[DevicePredictor]:
    with open_predictor(small_bundle, threads=ThreadBudget(1, 1)) as opened:
        yield opened


def stream(
    predictor: DevicePredictor, clip: Clip, until_s: float, sound_end_s: float | None = None
) -> Perception:
    """Feed a clip: frames on the grid, sound in blocks of 10 ms, encoded once a stride."""
    perception = Perception(predictor)
    assert clip.samples is not None
    for index in range(round(until_s / 0.1) + 1):
        if index:
            samples = clip.samples[(index - 1) * 1600 : index * 1600]
            for number, block in enumerate(np.split(samples, 10), start=1):
                perception.push_sound(Sound((index - 1) / 10 + number / 100, block))
            perception.encode_sound(sound_end_s)
        perception.encode_frame(clip.frames[index], index)
    return perception


def with_version(predictor: DevicePredictor, version: int) -> DevicePredictor:
    """Return the same predictor with another version of the front end, as an older bundle without it has."""
    front_end = replace(predictor.constants.front_end, version=version)
    constants = replace(predictor.constants, front_end=front_end)
    parts = (predictor.engines, predictor.language_model, predictor.tokenizer, predictor.delimiters)
    return Predictor(constants, *parts, None if version == ZERO_PADDING else predictor.confidence)


@pytest.mark.parametrize("now_s", [0.4, 1.0, 1.7])
def test_a_streams_reading_is_the_whole_clips(predictor: DevicePredictor, now_s: float) -> None:
    clip = tiny_clip(4, 2.0)
    evidence = stream(predictor, clip, now_s).read(now_s)
    assert evidence is not None
    affect, enhanced = predictor.adapt(
        predictor.encode(window_at(clip, now_s, "audio-visual", predictor.constants.front_end))
    )
    assert evidence.reading.valence == pytest.approx(affect.valence, abs=1e-5)
    assert evidence.reading.arousal == pytest.approx(affect.arousal, abs=1e-5)
    np.testing.assert_allclose(evidence.enhanced.visual, enhanced.visual, atol=1e-4)
    np.testing.assert_allclose(evidence.enhanced.audio, enhanced.audio, atol=1e-4)
    assert evidence.reading.path == "audio-visual"
    assert sum(evidence.reading.emotions.values()) == pytest.approx(1, abs=1e-3)


def test_each_frame_and_each_window_is_encoded_once(predictor: DevicePredictor) -> None:
    perception = stream(predictor, tiny_clip(4, 2.0), 1.9)
    for _ in range(5):
        perception.read(1.9)
    # Three strides of sound, 0.3 s, are too few to be heard.
    assert perception.encodes == {"vision_encoder": 20, "audio_encoder": 16}
    assert perception.times.summary()["emo_adapter"]["count"] == 5


@pytest.mark.parametrize(
    ("version", "heard_from_s"),
    [(SILENT_PADDING, 0.4), (ZERO_PADDING, 1.0)],  # a third of the window of 1 s, and all of it
)
def test_before_there_is_enough_sound_frames_alone_are_read(
    predictor: DevicePredictor, version: int, heard_from_s: float
) -> None:
    clip, paths = tiny_clip(4, 2.0), {}
    for index in range(1, 15):
        evidence = stream(with_version(predictor, version), clip, index / 10).read(index / 10)
        assert evidence is not None
        paths[index / 10] = evidence.reading.path
    assert paths == {now_s: "audio-visual" if now_s >= heard_from_s else "visual" for now_s in paths}


def test_a_lost_microphone_is_heard_again_when_there_is_enough_new_sound(predictor: DevicePredictor) -> None:
    samples = tiny_clip(4, 3.0).samples
    assert samples is not None
    perception = Perception(predictor)
    perception.push_sound(Sound(1.0, samples[:16_000]))
    perception.encode_sound()
    assert perception.read(1.0) is not None
    perception.forget_sound()
    assert perception.newest_sound_window() is None
    for index in range(10, 20):
        now_s = (index + 1) / 10
        perception.push_sound(Sound(now_s, samples[index * 1600 : (index + 1) * 1600]))
        perception.encode_sound()
        evidence = perception.read(now_s)
        assert (evidence is not None) == (index >= 13), now_s
    # The window holds what came since then and nothing from before.
    assert evidence is not None
    again = window_at(Clip(samples=samples[16_000:32_000]), 1.0, "audio", predictor.constants.front_end)
    np.testing.assert_allclose(evidence.plain.audio, predictor.encode(again).audio, atol=1e-5)


@pytest.mark.parametrize("version", [ZERO_PADDING, SILENT_PADDING])
def test_a_sound_that_ends_early_is_read_at_its_end_as_the_whole_clip_is(
    predictor: DevicePredictor, version: int
) -> None:
    samples = tiny_clip(4, 1.0).samples
    assert samples is not None
    clip, of_version = Clip(samples=samples[:4000]), with_version(predictor, version)
    perception = Perception(of_version)
    perception.push_sound(Sound(0.2, samples[:3200]))
    perception.encode_sound(clip.duration_s)
    assert perception.read(0.2) is None  # the end is known and not reached
    perception.push_sound(Sound(0.25, samples[3200:4000]))
    perception.encode_sound()
    assert perception.read(0.25) is None  # it is reached and not known
    perception.encode_sound(clip.duration_s)
    evidence = perception.read(0.25)
    assert evidence is not None
    whole = of_version(clip, "audio", []).affect
    reading = evidence.reading
    assert (reading.valence, reading.arousal, reading.valence_sd, reading.arousal_sd) == pytest.approx(
        (whole.valence, whole.arousal, whole.valence_sd, whole.arousal_sd), abs=1e-5
    )


def test_a_reading_of_little_sound_has_the_confidence_of_little_sound(predictor: DevicePredictor) -> None:
    assert predictor.confidence is not None
    samples = tiny_clip(4, 2.0).samples
    assert samples is not None
    stages = predictor.confidence.paths["audio"]
    for now_s, sound_end_s, stage in ((0.2, 0.2, 0), (0.5, None, 1), (0.8, None, 2), (1.1, None, 3)):
        perception = Perception(predictor)
        perception.push_sound(Sound(now_s, samples[: round(now_s * 16_000)]))
        perception.encode_sound(sound_end_s)
        evidence = perception.read(now_s)
        assert evidence is not None
        affect, _ = predictor.adapt(replace(evidence.plain, sound_s=math.inf))  # filled: not scaled
        reading, numbers = evidence.reading, stages[stage]
        assert reading.arousal_sd == pytest.approx(affect.arousal_sd * numbers.arousal_scale, abs=1e-5)
        assert reading.arousal_interval == pytest.approx(
            reading.arousal_sd * numbers.arousal_quantile, abs=1e-5
        )


def test_less_than_a_frame_of_sound_is_nothing(predictor: DevicePredictor) -> None:
    perception = Perception(predictor)
    perception.push_sound(Sound(0.02, np.ones(320, np.float32)))
    perception.encode_sound(0.02)
    assert perception.read(0.02) is None


def test_evidence_older_than_a_second_does_not_count(predictor: DevicePredictor) -> None:
    perception = stream(predictor, tiny_clip(4, 2.0), 1.0)
    fresh, late = perception.read(1.0 + STALE_S), perception.read(1.0 + STALE_S + 0.05)
    assert fresh is not None
    assert fresh.reading.path == "audio-visual"
    assert fresh.reading.visual_age_s == STALE_S
    assert late is None
    perception.encode_frame(tiny_clip(4).frames[0], 21)
    visual = perception.read(2.1)
    assert visual is not None
    assert (visual.reading.path, visual.reading.audio_age_s) == ("visual", None)


def test_before_anything_came_there_is_no_reading(predictor: DevicePredictor) -> None:
    assert Perception(predictor).read(0.0) is None


def test_a_missed_grid_point_is_left_out_of_the_window(predictor: DevicePredictor) -> None:
    perception, clip = Perception(predictor), tiny_clip(4, 2.0)
    for index in (0, 8, 12):  # of a window of 12, 8, 4, 0
        perception.encode_frame(clip.frames[index], index)
    evidence = perception.read(1.2)
    assert evidence is not None
    assert evidence.plain.frame_ages_s.tolist() == pytest.approx([1.2, 0.4, 0.0])


def test_stage_times_count_everything_and_keep_little() -> None:
    times = StageTimes()
    for _ in range(5000):
        with times.measure("stage"):
            pass
    assert times.summary()["stage"]["count"] == 5000
    assert len(times._ms["stage"]) <= 4096
