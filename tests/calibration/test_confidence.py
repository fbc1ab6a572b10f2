"""Calibrated confidence: temperature, conformal intervals, separate halves, and a bundle's readings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.confidence import (
    ECE_BINS,
    GAUSSIAN_QUANTILE,
    LEAST_WORKS,
    RatedReadings,
    affordable,
    calibrate,
    conformal_quantile,
    expected_calibration_error,
    fit_confidence,
    fit_temperature,
    read_paths,
    stages_s,
)
from calibration.rated import Label, RatedArt, RatedWindow
from export.predictors import checkpoint_predictor
from runtime.machine.threads import ThreadBudget
from runtime.messages import Sound
from runtime.perception.perception import Perception
from runtime.perception.predictor import Predictor, open_predictor
from tests.quick_export import CONFIDENCE_WORKS
from tests.tiny import tiny_clip, tiny_config, tiny_model
from vaemotion.contract.audio import SAMPLE_RATE_HZ, log_mel, normalized_window
from vaemotion.contract.bundle import BundleError, read_manifest
from vaemotion.contract.confidence import Confidence, confidence_of, tempered
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.errors import UserError
from vaemotion.contract.front_end import PATHS, FrontEnd, window_at
from vaemotion.contract.prediction import Affect

CONFIG = tiny_config()
FRONT_END = FrontEnd(CONFIG.log_mel, CONFIG.image, CONFIG.windows)  # audio windows of 1 s


def filled(affects_by_path: Mapping[str, list[Affect]], labels: list[Label], seed: int = 0) -> Confidence:
    """Calibrate with the same reading at every stage of a path."""
    stages = {path: len(stages_s(path, FRONT_END)) for path in affects_by_path}
    rated = [
        RatedReadings(
            f"work {i}",
            {path: label for path, affects in affects_by_path.items() if i < len(affects)},
            {p: [affects[i]] * stages[p] for p, affects in affects_by_path.items() if i < len(affects)},
        )
        for i, label in enumerate(labels)
    ]
    return calibrate(rated, FRONT_END, seed)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


def material(
    count: int, *, sharpness: float = 2.0, spread_share: float = 0.4, seed: int = 0
) -> tuple[list[Affect], list[Label]]:
    """Return predictions and labels, one rater per work.

    The emotions' logits are ``sharpness`` times the true ones, the spreads ``spread_share`` times the true
    ones.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 9))
    raters = np.array([rng.multinomial(1, shares) for shares in softmax(logits)], np.float64)
    true_sd = rng.uniform(0.05, 0.5, (count, 2))
    predicted = rng.uniform(-0.5, 0.5, (count, 2))
    values = predicted + rng.normal(0, true_sd)
    emotions = softmax(logits * sharpness).astype(np.float32)
    sd = spread_share * true_sd
    affects = [
        Affect(predicted[i, 0], predicted[i, 1], sd[i, 0], sd[i, 1], emotions[i]) for i in range(count)
    ]
    return affects, [Label(values[i, 0], values[i, 1], raters[i]) for i in range(count)]


# --- the two methods --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(temperature=st.floats(0.2, 8), seed=st.integers(0, 1000))
def test_the_temperature_that_was_is_found(temperature: float, seed: int) -> None:
    emotions = softmax(np.random.default_rng(seed).normal(0, 1, (50, 9)))
    assert fit_temperature(emotions, tempered(emotions, temperature)) == pytest.approx(temperature, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(5, 60))
def test_no_temperature_of_a_fine_grid_is_better(seed: int, count: int) -> None:
    affects, labels = material(count, seed=seed)
    emotions, truth = (
        np.array([a.emotions for a in affects], np.float64),
        np.array([label.emotions for label in labels]),
    )

    def divergence(temperature: float) -> float:
        return -float((truth * np.log(tempered(emotions, temperature))).sum())

    grid = np.geomspace(0.06, 19, 200)
    assert divergence(fit_temperature(emotions, truth)) <= min(map(divergence, grid)) + 1e-6


@given(scores=st.lists(st.floats(0, 10), min_size=1, max_size=60), percent=st.integers(1, 99))
def test_the_quantile_is_the_least_score_that_enough_others_do_not_exceed(
    scores: list[float], percent: int
) -> None:
    wanted = -((len(scores) + 1) * (percent - 100) // 100)  # ⌈(n + 1)(1 - alpha)⌉ in whole numbers
    reached = [score for score in sorted(scores) if sum(other <= score for other in scores) >= wanted]
    if not reached:
        with pytest.raises(ValueError, match=f"{len(scores)} scores are too few"):
            conformal_quantile(np.array(scores), percent / 100)
    else:
        assert conformal_quantile(np.array(scores), percent / 100) == reached[0]


@pytest.mark.parametrize("count", [9, 12, 19, 50])
def test_an_interval_from_few_scores_holds_as_often_as_promised(count: int) -> None:
    rng = np.random.default_rng(count)
    draws = rng.exponential(size=(20_000, count + 1))
    held = np.mean(
        [new <= conformal_quantile(row, 0.1) for row, new in zip(draws[:, 1:], draws[:, 0], strict=True)]
    )
    exact = math.ceil((count + 1) * 0.9 - 1e-9) / (count + 1)
    assert exact >= 0.9
    assert held == pytest.approx(exact, abs=0.008)  # four standard errors


def test_the_calibration_error_is_the_gap_between_sure_and_right() -> None:
    sure = np.tile([0.8, 0.1, 0.1], (100, 1))
    right = np.zeros((100, 3))
    right[:60, 0] = right[60:, 1] = 1
    assert expected_calibration_error(sure, right) == pytest.approx(0.2)
    # The second half is in another bin: confidence 0.4, accuracy 0.6.
    half = np.concatenate([sure, np.tile([0.4, 0.3, 0.3], (100, 1))])
    assert expected_calibration_error(half, np.concatenate([right, right])) == pytest.approx(0.2)
    assert expected_calibration_error(sure, np.tile([0.8, 0.2, 0.0], (100, 1))) == pytest.approx(0)
    assert expected_calibration_error(np.eye(3), np.eye(3)) == 0  # a confidence of 1 is in the last bin
    assert ECE_BINS == 15


# --- calibrate --------------------------------------------------------------------------------------------


def test_overconfidence_is_found_and_corrected_on_works_that_did_not_fit() -> None:
    affects, labels = material(4000)
    timid, same_labels = material(4000, sharpness=0.5, spread_share=3.0)
    found = filled({"audio": affects, "visual": timid}, labels)
    assert [label.valence for label in labels] == [label.valence for label in same_labels]
    sharp, soft = found.paths["audio"][-1], found.paths["visual"][-1]
    assert (sharp.temperature, soft.temperature) == pytest.approx((2.0, 0.5), rel=0.1)
    assert (sharp.valence_quantile, soft.arousal_quantile) == pytest.approx(
        (GAUSSIAN_QUANTILE / 0.4, GAUSSIAN_QUANTILE / 3), rel=0.06
    )
    assert sharp.before.ece > 0.1 > 0.04 > sharp.after.ece
    assert sharp.before.valence_coverage < 0.6
    assert soft.before.arousal_coverage > 0.99
    for path in (sharp, soft):
        assert path.after.valence_coverage == pytest.approx(0.9, abs=0.025)
        assert path.after.arousal_coverage == pytest.approx(0.9, abs=0.025)
        assert (path.valence_scale, path.arousal_scale) == (1.0, 1.0)


def test_a_window_that_fills_has_a_deviation_as_large_as_its_errors() -> None:
    affects, labels = material(4000)  # whose deviations are 0.4 times the true ones
    stages = filled({"audio": affects}, labels).paths["audio"]
    assert [stage.from_s for stage in stages] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)
    for stage in stages[:-1]:
        assert (stage.valence_scale, stage.arousal_scale) == pytest.approx((2.5, 2.5), rel=0.05)
        assert stage.valence_quantile == pytest.approx(GAUSSIAN_QUANTILE, rel=0.06)
        assert stage.after.valence_coverage == pytest.approx(0.9, abs=0.025)
        assert stage.after.valence_nll < stage.before.valence_nll - 1
    assert stages[-1].after.valence_nll == stages[-1].before.valence_nll


def test_a_deviation_that_is_large_enough_is_not_made_smaller() -> None:
    timid, labels = material(400, spread_share=3.0)
    assert {stage.arousal_scale for stage in filled({"audio": timid}, labels).paths["audio"]} == {1.0}


def test_a_work_fits_or_judges_and_never_both() -> None:
    affects, labels = material(41)
    whole = filled({"visual": affects}, labels)
    assert (whole.fitted_on, whole.judged_on) == (21, 20)
    fitted = judged = 0
    for i in range(len(labels)):
        doubtful = np.full(9, 1 / 9)
        changed = [*labels[:i], replace(labels[i], emotions=doubtful), *labels[i + 1 :]]
        path = filled({"visual": affects}, changed).paths["visual"][0]
        fits = path.temperature != whole.paths["visual"][0].temperature
        judges = path.before != whole.paths["visual"][0].before
        assert fits != judges
        fitted, judged = fitted + fits, judged + judges
    assert (fitted, judged) == (21, 20)


def test_the_seed_draws_the_halves() -> None:
    affects, labels = material(60)
    first, again, other = (filled({"audio": affects}, labels, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.paths != other.paths
    assert other.seed == 1


def test_a_path_with_too_few_works_is_left_out_and_nothing_at_all_is_refused() -> None:
    affects, labels = material(LEAST_WORKS)
    found = filled({"audio": affects, "visual": affects[:-1]}, labels)
    assert list(found.paths) == ["audio"]
    assert (found.fitted_on, found.judged_on) == (10, 10)
    with pytest.raises(ValueError, match="needs 20 works rated on one path, got 19"):
        filled({"visual": affects[:-1]}, labels)


def test_windows_of_one_work_stay_together() -> None:
    affects, labels = material(80)
    paired = [
        RatedReadings(f"work {i // 2}", {"visual": label}, {"visual": [affect]})
        for i, (affect, label) in enumerate(zip(affects, labels, strict=True))
    ]
    whole = calibrate(paired, FRONT_END)
    assert (whole.fitted_on, whole.judged_on) == (20, 20)
    doubtful = np.full(9, 1 / 9)
    for first in range(0, 80, 2):
        fits: set[bool] = set()
        for i in (first, first + 1):
            changed = [*paired]
            changed[i] = replace(paired[i], labels={"visual": replace(labels[i], emotions=doubtful)})
            stage = calibrate(changed, FRONT_END).paths["visual"][0]
            fits.add(stage.temperature != whole.paths["visual"][0].temperature)
        assert len(fits) == 1


# --- from a predictor -------------------------------------------------------------------------------------


class Counting:
    """An engine that counts its rows."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.rows = engine, 0

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.rows += len(next(iter(arrays.values())))
        return self.engine.run(arrays)


@pytest.fixture(scope="module")
def predictor() -> Predictor[Any]:
    return checkpoint_predictor(tiny_model())


def art(count: int) -> RatedArt:
    return RatedArt(FRONT_END, EMOTIONS, count)


def art_window(index: int) -> RatedWindow:
    return art(index + 1).window(index)


def test_every_path_is_calibrated_and_nothing_is_encoded_twice(predictor: Predictor[Any]) -> None:
    engines = {role: Counting(engine) for role, engine in predictor.engines.items()}
    found = fit_confidence(predictor.with_engines(engines), art(24), most_s=600)
    assert set(found.paths) == set(PATHS)
    assert (found.fitted_on, found.judged_on) == (12, 12)
    frames = predictor.constants.front_end.windows.frames
    stages = {path: len(stages_s(path, predictor.constants.front_end)) for path in PATHS}
    assert {path: len(found.paths[path]) for path in PATHS} == stages
    assert {role: engine.rows for role, engine in engines.items()} == {
        "vision_encoder": 24 * frames,
        "audio_encoder": 24 * stages["audio"],
        "emo_adapter": 24 * sum(stages.values()),
    }


def test_a_path_reads_what_it_perceives_and_nothing_else(predictor: Predictor[Any]) -> None:
    window, front_end = art_window(3), predictor.constants.front_end
    clip = window.clip
    read = read_paths(predictor, window, 5)
    assert set(read) == set(PATHS)
    for path, (*_, affect) in read.items():
        alone, _ = predictor.adapt(predictor.encode(window_at(clip, clip.duration_s, path, front_end)))
        assert (affect.valence, affect.arousal_sd) == pytest.approx(
            (alone.valence, alone.arousal_sd), abs=1e-5
        )


class Remembering:
    """An engine that keeps its inputs."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs = engine, []

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.inputs.append(arrays)
        return self.engine.run(arrays)


def test_an_early_stage_reads_a_stream_that_has_just_begun(predictor: Predictor[Any]) -> None:
    window, front_end = art_window(3), predictor.constants.front_end
    audio, adapter = (Remembering(predictor.engines[role]) for role in ("audio_encoder", "emo_adapter"))
    read_paths(predictor.with_engines({"audio_encoder": audio, "emo_adapter": adapter}), window, 5)
    samples = window.clip.samples
    assert samples is not None
    config, frames = front_end.log_mel, front_end.audio_window_frames
    starts_s = pairwise(stages_s("audio", front_end))
    for inputs, (from_s, to_s) in zip(audio.inputs[1:], starts_s, strict=True):
        mel = inputs["log_mel"][0]
        heard = frames - int((mel == mel[-1]).all(axis=1)[::-1].argmin())  # before the padding
        assert config.frames_in(round(from_s * SAMPLE_RATE_HZ)) <= heard <= to_s / config.hop_s
        # It is the newest sound, of one of the lengths that have so many frames.
        shortest = config.samples_for(heard)
        begins = [
            samples[-n:][: config.frame_samples] for n in range(shortest, shortest + config.hop_samples)
        ]
        first = [normalized_window(log_mel(begin, config), 1, config)[0] for begin in begins]
        assert min(np.abs(frame - mel[0]).max() for frame in first) < 1e-5
    masks = [int(inputs["visual_mask"].sum()) for inputs in adapter.inputs if inputs["visual_mask"].any()]
    assert masks[0] == max(masks)  # on the visual path alone: filled
    assert min(masks) < max(masks)  # an early stream has seen less


def test_a_slow_machine_takes_fewer_works_and_a_very_slow_one_says_so() -> None:
    assert affordable(200, 0.05, 60.0) == 200
    assert affordable(200, 1.0, 60.0) == 60
    assert affordable(200, 3.0, 60.0) == LEAST_WORKS
    with pytest.raises(
        UserError, match=r"a work takes 3\.5 s on this machine, too slow for the minimum of 20 works"
    ):
        affordable(200, 3.5, 60.0)


def test_without_time_there_is_no_calibration(predictor: Predictor[Any]) -> None:
    with pytest.raises(UserError, match="confidence is not calibrated"):
        fit_confidence(predictor, art(30), most_s=0.0)


# --- in a bundle ------------------------------------------------------------------------------------------


def test_a_bundle_carries_it_and_every_reading_shows_it(small_bundle: Path) -> None:
    confidence = confidence_of(read_manifest(small_bundle))
    assert confidence is not None
    assert set(confidence.paths) == set(PATHS)
    assert len(RatedArt(FRONT_END, EMOTIONS)) == 200  # an export's; the bundle of the tests takes fewer
    assert confidence.fitted_on == CONFIDENCE_WORKS / 2
    clip = tiny_clip(4, 2.0)
    assert clip.samples is not None
    with open_predictor(small_bundle, threads=ThreadBudget(1, 1)) as opened:
        assert opened.confidence == confidence
        perception = Perception(opened)
        perception.push_sound(Sound(1.0, clip.samples[:16_000]))
        perception.encode_sound()
        heard = perception.read(1.0)
        perception.encode_frame(clip.frames[10], 10)
        both = perception.read(1.0)
        opened.confidence = None
        plain = perception.read(1.0)
    for evidence, path in ((heard, "audio"), (both, "audio-visual")):
        assert evidence is not None
        reading, numbers = evidence.reading, confidence.paths[path][-1]
        assert reading.path == path
        assert reading.confidence == max(reading.emotions.values())
        assert reading.valence_interval == pytest.approx(
            numbers.valence_quantile * reading.valence_sd, abs=1e-5
        )
        assert reading.arousal_interval == pytest.approx(
            numbers.arousal_quantile * reading.arousal_sd, abs=1e-5
        )
    assert plain is not None
    assert (plain.reading.confidence, plain.reading.valence_interval) == (None, None)


def test_a_bundle_without_it_has_none_and_a_damaged_one_says_what_to_do(small_bundle: Path) -> None:
    manifest = read_manifest(small_bundle)
    assert confidence_of(replace(manifest, lineage={})) is None
    with pytest.raises(BundleError, match=r"schema 2\); export the checkpoint again"):
        confidence_of(replace(manifest, lineage={"confidence": {"paths": {}}}))
