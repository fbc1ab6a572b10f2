"""Perception: a stream gives what the whole clip gives, and nothing is encoded twice."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from runtime.machine.threads import ThreadBudget
from runtime.messages import Sound
from runtime.perception.perception import STALE_S, Perception
from runtime.perception.predictor import DevicePredictor, open_predictor
from runtime.stage_times import StageTimes
from tests.tiny import tiny_clip
from vaemotion.contract.front_end import Clip, window_at


@pytest.fixture(scope="module")
def predictor(small_bundle: Path) -> Generator[DevicePredictor]:
    with open_predictor(small_bundle, threads=ThreadBudget(1, 1)) as opened:
        yield opened


def stream(predictor: DevicePredictor, clip: Clip, until_s: float) -> Perception:
    """Feed a clip: frames on the grid, sound in blocks of 10 ms, encoded once a stride."""
    perception = Perception(predictor)
    assert clip.samples is not None
    for index in range(round(until_s / 0.1) + 1):
        if index:
            samples = clip.samples[(index - 1) * 1600 : index * 1600]
            for number, block in enumerate(np.split(samples, 10), start=1):
                perception.push_sound(Sound((index - 1) / 10 + number / 100, block))
            perception.encode_sound()
        perception.encode_frame(clip.frames[index], index)
    return perception


@pytest.mark.parametrize("now_s", [0.2, 1.0, 1.7])
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
    assert perception.encodes == {"vision_encoder": 20, "audio_encoder": 19}
    assert perception.times.summary()["emo_adapter"]["count"] == 5


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
