"""Calibrated confidence: the record is read back as written, all else is refused, and it is applied right."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaemotion.contract.confidence import Confidence, PathConfidence, Quality, apply, tempered
from vaemotion.contract.prediction import Affect

shares = st.floats(0, 1)
qualities = st.builds(Quality, shares, shares, shares)
factors = st.floats(0.01, 100)
confidences = st.builds(
    Confidence,
    st.dictionaries(
        st.sampled_from(["audio", "visual", "audio-visual"]),
        st.builds(PathConfidence, factors, factors, factors, qualities, qualities),
        min_size=1,
    ),
    shares,
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 2**31),
)
QUALITY = Quality(0.05, 0.9, 0.91)
RECORD = Confidence({"audio": PathConfidence(2.0, 1.5, 3.0, QUALITY, QUALITY)}, 0.9, 100, 100, 0)
AFFECT = Affect(0.2, -0.3, 0.1, 0.2, np.array([0.05] * 8 + [0.6], np.float32))


@given(confidences)
def test_what_is_written_is_read_back(confidence: Confidence) -> None:
    assert Confidence.from_json(json.loads(json.dumps(confidence.as_json()))) == confidence


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


def places(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return every key of nested objects."""
    found = []
    for key, value in values.items():
        found += [(*path, key)] + (places(value, (*path, key)) if isinstance(value, dict) else [])
    return found


@given(st.data(), json_values)
def test_a_record_with_anything_in_any_place_is_read_back_or_refused(data: st.DataObject, junk: Any) -> None:
    values = copy.deepcopy(RECORD.as_json())
    *parents, key = data.draw(st.sampled_from(places(values)))
    inside = values
    for parent in parents:
        inside = inside[parent]
    action = data.draw(st.sampled_from(["exchange", "remove", "add"]))
    if action == "remove":
        del inside[key]
    else:
        inside[key if action == "exchange" else key + "_"] = junk
    try:
        read = Confidence.from_json(values)
    except ValueError:
        return
    assert action == "exchange"
    assert Confidence.from_json(read.as_json()) == read


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "must have the schema 1"),
        ({"paths": {}}, "paths must be some of audio, visual, audio-visual, got none"),
        ({"paths": {"smell": {}}}, "got smell"),
        ({"coverage": 1.5}, "coverage must be a number from 0 to 1, got 1.5"),
        ({"fitted_on": 2.5}, "fitted_on must be a whole number"),
        ({"extra": 1}, "confidence has unknown fields: extra"),
    ],
)
def test_a_record_that_is_wrong_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Confidence.from_json({**RECORD.as_json(), **change})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), True, "2"])
def test_a_temperature_that_is_none_is_named(value: Any) -> None:
    values = RECORD.as_json()
    values["paths"]["audio"]["temperature"] = value
    with pytest.raises(ValueError, match=r"audio\.temperature must be a number"):
        Confidence.from_json(values)


def test_the_interval_is_the_spread_times_the_quantile_and_the_emotions_are_tempered() -> None:
    calibrated = apply(RECORD, "audio", AFFECT)
    assert calibrated is not None
    assert calibrated.valence_interval == pytest.approx(0.15)
    assert calibrated.arousal_interval == pytest.approx(0.6)
    roots = np.sqrt(AFFECT.emotions)  # a temperature of 2
    np.testing.assert_allclose(calibrated.emotions, roots / roots.sum(), rtol=1e-5)
    assert calibrated.confidence == pytest.approx(float(calibrated.emotions[8]))


def test_a_path_without_calibration_claims_nothing() -> None:
    assert apply(RECORD, "visual", AFFECT) is None


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
    calibrated = apply(RECORD, "audio", affect)
    assert calibrated is not None
    assert calibrated.emotions.max() == pytest.approx(calibrated.confidence)
