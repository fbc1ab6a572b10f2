"""What is not finite is no evidence: it costs its own moments only, is told, and another engine is tried."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from runtime.engines.fallback import FallbackEngine
from runtime.engines.io import EngineUnavailable
from runtime.messages import NotFinite, Reading, Sound
from runtime.perception.finite import SWITCH_AFTER_S
from runtime.perception.perception import Perception
from runtime.perception.predictor import DevicePredictor
from runtime.show.show import Show, ShowConfig
from tests.runtime.perception.stub_predictor import StubEngine, stub_predictor

MOMENTS = 6000
ALWAYS = range(10**9)
NOON = datetime.datetime(2026, 1, 1, 12, 0, tzinfo=datetime.UTC)


class Run:
    """A run of frames and sound, a moment every 0.1 s: its readings by moment, and what was told."""

    def __init__(self, predictor: DevicePredictor, moments: int = MOMENTS) -> None:
        self.perception, self.moments = Perception(predictor), moments
        self.readings: dict[int, Reading] = {}
        self.told: list[tuple[float, str]] = []
        front_end = predictor.constants.front_end
        side = front_end.image.side_px
        random = np.random.default_rng(7)
        pixels = random.standard_normal((64, 3, side, side)).astype(np.float32)
        log_mel = random.standard_normal((61, 30, front_end.log_mel.n_mels)).astype(np.float32)
        for moment in range(moments):
            now_s = moment / 10
            [visual] = self.perception.encode("vision_encoder", [pixels[moment % len(pixels)]])
            self.perception.add_frame_tokens(moment, visual)
            [audio] = self.perception.encode("audio_encoder", [log_mel[moment % len(log_mel)]])
            if audio is not None:
                self.perception.add_audio_tokens(now_s, audio, 3.0)
            if evidence := self.perception.read(now_s):
                self.readings[moment] = evidence.reading
            self.told += [(now_s, sentence) for sentence in self.perception.step(now_s)]

    def differences(self, other: Run) -> list[int]:
        """Return this run's moments at which the readings differ, or only one run has one."""
        return [k for k in range(self.moments) if self.readings.get(k) != other.readings.get(k)]


@pytest.fixture(scope="module")
def sound() -> Run:
    return Run(stub_predictor())


def test_one_result_that_is_not_finite_costs_one_reading_of_6000(sound: Run) -> None:
    broken = Run(stub_predictor(emo_adapter=range(50, 51)))
    assert len(sound.readings) == MOMENTS
    assert broken.differences(sound) == [50]
    assert 50 not in broken.readings
    assert broken.perception.lost == {"results of the emo_adapter": 1}
    [(told_s, sentence), *ended] = broken.told
    assert told_s == 5.0
    assert sentence == "results of the emo_adapter lost so far: 1 (not finite: NaN or infinity)"
    assert [sentence for _, sentence in ended] == [f"{sentence}; none now"]
    assert sound.told == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_frame_whose_tokens_are_not_finite_is_left_out_of_the_windows_that_it_lies_in(
    sound: Run, value: float
) -> None:
    predictor = stub_predictor(vision_encoder=range(50, 51))
    predictor.engines["vision_encoder"].value = value
    broken = Run(predictor, 300)
    windows = predictor.constants.front_end.windows
    held = [50 + windows.hops_per_spacing * k for k in range(windows.frames)]
    assert broken.differences(sound) == held
    assert broken.readings[50].visual_age_s == 0.1  # the frame before it, and the reading says so
    assert all(np.isfinite(reading.valence) for reading in broken.readings.values())


def test_sound_whose_tokens_are_not_finite_is_heard_a_moment_later(sound: Run) -> None:
    broken = Run(stub_predictor(audio_encoder=range(50, 51)), 300)
    assert broken.differences(sound) == [50]
    assert broken.readings[50].audio_age_s == 0.1


def test_a_frame_that_could_not_be_encoded_is_not_taken_for_the_one_before_it() -> None:
    predictor = stub_predictor(vision_encoder=range(1, 2))
    perception = Perception(predictor)
    side = predictor.constants.front_end.image.side_px
    for index in range(2):
        perception.encode_frame(np.full((side, side, 3), 90 * index, np.uint8), index)
    perception.repeat_frame(2)  # the frame that came at 0.1 s is still shown
    evidence = perception.read(0.2)
    assert evidence is not None
    assert evidence.reading.visual_age_s == 0.2
    assert perception.read(1.2) is None


def test_the_show_s_smoothing_never_takes_a_value_that_is_not_finite(sound: Run) -> None:
    broken = Run(stub_predictor(emo_adapter=range(50, 53)), 300)

    def shown(readings: Sequence[Reading | None]) -> list[Reading | None]:
        show = Show(ShowConfig(), ("camera",))
        return [
            show.step(k / 10, reading, 0.0, {"camera"}, False, NOON).reading
            for k, reading in enumerate(readings)
        ]

    smooth = shown([broken.readings.get(k) for k in range(300)])
    expected = shown([sound.readings[k] for k in range(300)])
    assert [k for k, reading in enumerate(smooth) if reading is None] == [50, 51, 52]
    assert smooth[:50] == expected[:50]
    assert smooth[100:] == expected[100:]  # the smoothing has forgotten it


def test_a_component_that_gives_nothing_finite_is_told_once_a_minute_with_its_count() -> None:
    run = Run(stub_predictor(audio_encoder=ALWAYS), 2000)
    assert len(run.readings) == 2000
    assert {reading.path for reading in run.readings.values()} == {"visual"}
    assert [told_s for told_s, _ in run.told] == [0.0, 60.0, 120.0, 180.0]
    assert run.told[1][1] == "results of the audio_encoder lost so far: 601 (not finite: NaN or infinity)"
    assert run.perception.lost == {"results of the audio_encoder": 2000}


@pytest.mark.parametrize("role", ["vision_encoder", "audio_encoder", "emo_adapter"])
def test_an_engine_that_is_stuck_is_replaced_by_the_next_one_that_opens(sound: Run, role: str) -> None:
    predictor = stub_predictor(**{role: range(100, 10**9)})
    stuck = predictor.engines[role]
    opened: list[str] = []

    def gone() -> StubEngine:
        opened.append("gone")
        raise EngineUnavailable("no such device")

    def whole() -> StubEngine:
        opened.append("whole")
        engine = StubEngine(stuck.compute)
        engine.component, engine.runs_on, engine.announcement = None, "cpu", f"{role} (fp32): the processor"
        return engine

    stuck.component, stuck.runs_on, stuck.announcement = None, "cuda", f"{role} (fp16): a GPU"
    predictor.engines[role] = FallbackEngine(stuck, [gone, whole])
    run = Run(predictor, 300)
    assert opened == ["gone", "whole"]
    switched = [(told_s, sentence) for told_s, sentence in run.told if "another engine" in sentence]
    assert switched == [
        (
            10.0 + SWITCH_AFTER_S,
            f"nothing finite for 5 s, so another engine is taken: {role} (fp32): the processor",
        )
    ]
    windows = predictor.constants.front_end.windows
    healed = 151 + windows.hops_per_spacing * windows.frames
    assert all(run.readings[k] == sound.readings[k] for k in [*range(100), *range(healed, 300)])


def test_one_finite_result_in_between_keeps_the_engine() -> None:
    predictor = stub_predictor()
    flickering = predictor.engines["vision_encoder"]
    flickering.broken_runs = [k for k in range(300) if k % 40]  # one in 40 is finite
    flickering.component = flickering.runs_on = flickering.announcement = None
    predictor.engines["vision_encoder"] = FallbackEngine(flickering, [lambda: 1 / 0])
    run = Run(predictor, 300)
    assert run.perception.lost == {"results of the vision_encoder": 292}


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_samples_that_are_not_finite_become_silence_and_are_counted(value: float) -> None:
    predictor = stub_predictor()
    perception, clean = Perception(predictor), Perception(predictor)
    random = np.random.default_rng(3)
    for k in range(40):
        samples = (0.1 * random.standard_normal(1600)).astype(np.float32)
        clean.push_sound(Sound(k / 10, np.where(np.arange(1600) < 100, 0, samples) if k == 5 else samples))
        if k == 5:
            samples[:100] = value
        perception.push_sound(Sound(k / 10, samples))
        perception.step(k / 10)
    window, expected = perception.newest_sound_window(), clean.newest_sound_window()
    assert window is not None
    assert expected is not None
    assert np.isfinite(window.log_mel).all()
    if np.isfinite(value):
        assert perception.lost == {}
    else:
        np.testing.assert_array_equal(window.log_mel, expected.log_mel)
        assert perception.lost == {"samples of sound": 100}


@pytest.mark.parametrize(
    "change",
    [
        {"valence": np.nan},
        {"arousal_sd": np.inf},
        {"time_s": -np.inf},
        {"audio_age_s": np.nan},
        {"confidence": np.float32(np.nan)},
        {"emotions": {"awe": 0.5, "fear": np.nan}},
    ],
)
def test_no_reading_can_be_made_of_what_is_not_finite(change: dict[str, object]) -> None:
    whole = Reading(1.0, 0.0, 0.0, 0.1, 0.1, {"awe": 1.0}, "audio", None, 0.1)
    with pytest.raises(NotFinite, match="must be finite, got"):
        replace(whole, **change)
