"""Differences from golden vectors: relative to what they are differences of, and as older manifests say."""

import numpy as np
import pytest

from runtime.engines.golden import golden_logit_difference, logit_error, logit_key, relative_difference
from vaemotion.contract.bundle import Component, Manifest
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.prompts import PromptTemplate

F16 = Component("language_model", "F16", "llm.gguf", "", 0, "Apache-2.0")
Q8_0 = Component("language_model", "Q8_0", "llm.gguf", "", 0, "Apache-2.0")


def manifest(tolerances: dict[str, float]) -> Manifest:
    """Describe a bundle of which only the tolerances matter."""
    return Manifest("m", 4, 1, 1, (0,), FrontEnd(), PromptTemplate(), (F16, Q8_0), tolerances, {}, {})


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, -200.0])
def test_logits_of_any_scale_are_judged_alike(scale: float, offset: float) -> None:
    generator = np.random.default_rng(0)
    expected = generator.normal(size=(5, 4000))
    got = expected + generator.normal(size=expected.shape) * 0.03
    error = logit_error(scale * expected + offset, scale * got + offset / 2)
    np.testing.assert_allclose(error, 0.03, rtol=0.05)


def test_one_damaged_row_is_seen_and_nan_is_infinite() -> None:
    expected = np.random.default_rng(0).normal(size=(3, 1000))
    got = expected.copy()
    got[1] = np.random.default_rng(1).normal(size=1000)
    got[2, 5] = np.nan
    error = logit_error(expected, got)
    assert error[0] == 0
    assert error[1] == pytest.approx(2**0.5, rel=0.1)
    assert error[2] == np.inf
    assert logit_error(np.zeros((1, 9)), np.arange(9.0)[None])[0] > 1e6


def test_a_manifest_says_by_the_name_of_its_tolerance_how_it_was_measured() -> None:
    expected = np.random.default_rng(0).normal(size=(1, 5000)) * 8
    got = expected + np.random.default_rng(1).normal(size=expected.shape) * 0.04
    largest = float(np.abs(got - expected).max())  # in logits
    assert golden_logit_difference(manifest({"language_model/F16": 0.03}), F16, expected, got) == (
        largest,
        0.03,
    )
    measured, allowed = golden_logit_difference(
        manifest({logit_key("language_model/F16"): 0.02}), F16, expected, got
    )
    assert measured == pytest.approx(0.005, rel=0.05)
    assert allowed == 0.02


def test_without_a_tolerance_floating_point_is_judged_finely_and_quantized_files_coarsely() -> None:
    expected = np.random.default_rng(0).normal(size=(1, 5000)) * 8
    coarse = expected + np.random.default_rng(1).normal(size=expected.shape)
    broken = np.random.default_rng(2).normal(size=expected.shape) * 8
    for component, got, holds in ((F16, coarse, False), (Q8_0, coarse, True), (Q8_0, broken, False)):
        measured, allowed = golden_logit_difference(manifest({}), component, expected, got)
        assert (measured <= allowed) is holds


def test_small_tokens_are_judged_by_their_own_size_and_numbers_with_a_unit_are_not() -> None:
    tokens = np.random.default_rng(0).normal(size=(1, 4, 32)) * 0.02
    largest, _ = relative_difference(tokens, tokens * 1.1)
    assert largest == pytest.approx(0.1)
    valence_arousal = np.array([[0.0, 0.02]])
    assert relative_difference(valence_arousal, valence_arousal + 1e-4)[0] == pytest.approx(1e-4)
