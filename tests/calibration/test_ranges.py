"""Histograms of tensors, and the ranges taken from them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.ranges import BINS, METHODS, Histogram, observed

values = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60)


def histogram_of(*parts: list[float]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.array(part, np.float32))
    return histogram


@settings(deadline=None)
@given(first=values, second=values)
def test_nothing_is_lost_and_the_order_of_the_batches_changes_no_extreme(
    first: list[float], second: list[float]
) -> None:
    one, other = histogram_of(first, second), histogram_of(second, first)
    assert one.counts.sum() == other.counts.sum() == len(first) + len(second)
    largest = max(map(abs, first + second))
    assert one.threshold("max") == other.threshold("max") == pytest.approx(max(largest, 6.2e-5))


@settings(deadline=None)
@given(values)
def test_every_range_lies_within_the_largest_magnitude_and_percentiles_are_ordered(
    numbers: list[float],
) -> None:
    histogram = histogram_of(numbers)
    largest = histogram.threshold("max")
    for method in METHODS:
        assert 0 < histogram.threshold(method) <= max(largest, 6.2e-5) + histogram.limit / BINS
    assert histogram.threshold("percentile 99.9") <= histogram.threshold("percentile 99.99")


def test_a_percentile_is_numpys_and_clips_that_share() -> None:
    numbers = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    histogram = Histogram()
    for part in np.split(numbers, 20):
        histogram.add(part)
    for percent in (99.9, 99.99):
        threshold = histogram.threshold(f"percentile {percent}")
        assert threshold == pytest.approx(np.percentile(np.abs(numbers), percent), rel=0.02)
        assert histogram.clipped_share(threshold) == pytest.approx(1 - percent / 100, rel=0.3)


def test_entropy_clips_lonely_outliers_and_keeps_a_plain_distribution() -> None:
    numbers = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    outliers = np.concatenate([numbers, np.full(3, 100.0, np.float32)])
    assert histogram_of(list(outliers)).threshold("entropy") < 20
    uniform = np.random.default_rng(2).uniform(-1, 1, 100_000)
    assert histogram_of(list(uniform)).threshold("entropy") > 0.9


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        histogram_of([1.0, float("nan")])


def test_an_unknown_method_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"percentile 99\.9"):
        histogram_of([1.0]).threshold("mean")


def test_inner_tensors_are_observed_over_all_batches() -> None:
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32) * 3, "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["inner"]), helper.make_node("Relu", ["inner"], ["y"])]
    spec = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", spec[:1], spec[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    batches = [{"x": np.array([[1, -2]], np.float32)}, {"x": np.array([[5, 0], [0, 0]], np.float32)}]
    inner = observed(model, ["inner"], batches)["inner"]
    assert (inner.lowest, inner.highest, inner.counts.sum()) == (-6, 15, 6)
    onnx.checker.check_model(model)
