"""Calibrated confidence: the record is read back as written, all else is refused, and it is applied right."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract.confidence import Confidence, Quality, StageConfidence, apply, scaled, tempered
from vaemotion.contract.front_end import SILENT_PADDING, ZERO_PADDING, FrontEnd
from vaemotion.contract.prediction import Affect

shares = st.floats(0, 1)
likelihoods = st.none() | st.floats(-5, 100)
qualities = st.builds(Quality, shares, shares, shares, likelihoods, likelihoods)
factors = st.floats(0.01, 100)
stages = st.lists(
    st.builds(
        StageConfidence, st.floats(0, 10), factors, factors, factors, factors, factors, qualities, qualities
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda stage: stage.from_s,
).map(lambda found: tuple(sorted(found, key=lambda stage: stage.from_s)))
confidences = st.builds(
    Confidence,
    st.dictionaries(st.sampled_from(["audio", "visual", "audio-visual"]), stages, min_size=1),
    shares,
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 2**31),
    st.floats(0, 3.0),
)
FRONT_END = FrontEnd()  # windows of 3 s
QUALITY = Quality(0.05, 0.9, 0.91, 0.5, -0.5)
FILLING = StageConfidence(1.0, 4.0, 2.0, 5.0, 1.6, 1.7, QUALITY, QUALITY)
FILLED = StageConfidence(3.0, 2.0, 1.0, 1.0, 1.5, 3.0, QUALITY, QUALITY)
RECORD = Confidence({"audio": (FILLING, FILLED)}, 0.9, 100, 100, 0, 1.0)
OLDER = {  # of schema 1
    "schema": 1,
    "paths": {
        path: {
            "temperature": 2.0,
            "valence_quantile": 1.5,
            "arousal_quantile": 3.0,
            "before": {"ece": 0.05, "valence_coverage": 0.9, "arousal_coverage": 0.91},
            "after": {"ece": 0.05, "valence_coverage": 0.9, "arousal_coverage": 0.91},
        }
        for path in ("audio", "visual")
    },
    "coverage": 0.9,
    "fitted_on": 100,
    "judged_on": 100,
    "seed": 0,
}
AFFECT = Affect(0.2, -0.3, 0.1, 0.2, np.array([0.05] * 8 + [0.6], np.float32))


@given(confidences)
def test_what_is_written_is_read_back(confidence: Confidence) -> None:
    assert Confidence.from_json(json.loads(json.dumps(confidence.as_json())), FRONT_END) == confidence


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


def places(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return every key of nested objects, and every place of their lists."""
    found = []
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        found += [(*path, key)] + (places(value, (*path, key)) if isinstance(value, dict | list) else [])
    return found


@given(st.data(), json_values)
def test_a_record_with_anything_in_any_place_is_read_back_or_refused(data: st.DataObject, junk: Any) -> None:
    values = copy.deepcopy(RECORD.as_json())
    *parents, key = data.draw(st.sampled_from([p for p in places(values) if isinstance(p[-1], str)]))
    inside = values
    for parent in parents:
        inside = inside[parent]
    action = data.draw(st.sampled_from(["exchange", "remove", "add"]))
    if action == "remove":
        del inside[key]
    else:
        inside[key if action == "exchange" else key + "_"] = junk
    try:
        read = Confidence.from_json(values, FRONT_END)
    except ValueError:
        return
    assert action == "exchange"
    assert Confidence.from_json(read.as_json(), FRONT_END) == read


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 3}, "must have the schema 2"),
        ({"paths": {}}, "paths must be some of audio, visual, audio-visual, got none"),
        ({"paths": {"smell": {}}}, "got smell"),
        ({"coverage": 1.5}, "coverage must be a number from 0 to 1, got 1.5"),
        ({"fitted_on": 2.5}, "fitted_on must be a whole number"),
        ({"extra": 1}, "confidence has unknown fields: extra"),
        ({"least_sound_s": 3.5}, "least_sound_s must be a number from 0 to 3, got 3.5"),
        ({"paths": {"audio": []}}, r"audio must be a list of stages, got \[\]"),
        ({"paths": {"audio": [asdict(FILLED), asdict(FILLING)]}}, "from_s must ascend"),
    ],
)
def test_a_record_that_is_wrong_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Confidence.from_json({**RECORD.as_json(), **change}, FRONT_END)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), True, "2"])
def test_a_temperature_that_is_none_is_named(value: Any) -> None:
    values = RECORD.as_json()
    values["paths"]["audio"][0]["temperature"] = value
    with pytest.raises(ValueError, match=r"audio\.temperature must be a number"):
        Confidence.from_json(values, FRONT_END)


def test_the_interval_is_the_spread_times_the_quantile_and_the_emotions_are_tempered() -> None:
    calibrated = apply(RECORD, "audio", AFFECT, 3.0)
    assert calibrated is not None
    assert calibrated.valence_interval == pytest.approx(0.15)
    assert calibrated.arousal_interval == pytest.approx(0.6)
    roots = np.sqrt(AFFECT.emotions)  # a temperature of 2
    np.testing.assert_allclose(calibrated.emotions, roots / roots.sum(), rtol=1e-5)
    assert calibrated.confidence == pytest.approx(float(calibrated.emotions[8]))


def test_a_path_without_calibration_claims_nothing() -> None:
    assert apply(RECORD, "visual", AFFECT, 3.0) is None
    assert scaled(RECORD, "visual", AFFECT, 3.0) == AFFECT


@pytest.mark.parametrize(("sound_s", "stage"), [(1.0, FILLING), (2.99, FILLING), (3.0, FILLED), (99, FILLED)])
def test_the_seconds_of_sound_choose_the_stage(sound_s: float, stage: StageConfidence) -> None:
    affect = scaled(RECORD, "audio", AFFECT, sound_s)
    assert (affect.valence_sd, affect.arousal_sd) == (
        AFFECT.valence_sd * stage.valence_scale,
        AFFECT.arousal_sd * stage.arousal_scale,
    )
    calibrated = apply(RECORD, "audio", affect, sound_s)
    assert calibrated is not None
    assert calibrated.valence_interval == affect.valence_sd * stage.valence_quantile
    np.testing.assert_allclose(calibrated.emotions, tempered(AFFECT.emotions, stage.temperature), rtol=1e-5)


def test_less_sound_than_was_calibrated_claims_nothing() -> None:
    assert apply(RECORD, "audio", AFFECT, 0.9) is None
    assert scaled(RECORD, "audio", AFFECT, 0.9) == AFFECT


@pytest.mark.parametrize(("version", "least_sound_s"), [(ZERO_PADDING, 3.0), (SILENT_PADDING, 1.0)])
def test_a_record_of_before_the_stages_holds_for_filled_windows(version: int, least_sound_s: float) -> None:
    found = Confidence.from_json(OLDER, replace(FRONT_END, version=version))
    assert found.least_sound_s == least_sound_s
    assert apply(found, "audio", AFFECT, 2.9) is None
    for path, sound_s in (("audio", 3.0), ("visual", 0.0)):
        assert scaled(found, path, AFFECT, sound_s) == AFFECT
        calibrated = apply(found, path, AFFECT, sound_s)
        assert calibrated is not None
        assert calibrated.valence_interval == pytest.approx(0.15)


@given(
    weights=st.lists(st.floats(0, 1), min_size=9, max_size=9).filter(lambda values: sum(values) > 0.1),
    temperature=st.floats(0.2, 20),
)
def test_temperature_keeps_a_distribution_and_its_order(weights: list[float], temperature: float) -> None:
    emotions = np.array(weights) / sum(weights)
    found = tempered(emotions, temperature)
    assert found.sum() == pytest.approx(1)
    assert (np.diff(found[np.argsort(emotions, kind="stable")]) >= -1e-12).all()
    np.testing.assert_allclose(tempered(emotions, 1.0), emotions, atol=1e-10)
    if temperature > 1:
        assert found.max() <= emotions.max() + 1e-9
    affect = replace(AFFECT, emotions=emotions.astype(np.float32))
    calibrated = apply(RECORD, "audio", affect, 3.0)
    assert calibrated is not None
    assert calibrated.emotions.max() == pytest.approx(calibrated.confidence)
