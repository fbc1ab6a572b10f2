from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tests.vaemotion.evaluation.benchmark.rows import UNIFORM, reading
from vaemotion.contract.front_end import PATHS
from vaemotion.evaluation.benchmark.affects import affect_results, distribution_results, gain_results
from vaemotion.evaluation.benchmark.rows import Bootstrap
from vaemotion.evaluation.metrics import ccc

RNG = np.random.default_rng(0)
BOOTSTRAP = Bootstrap(200, 0)
N = 80
LABELS = RNG.uniform(-1, 1, N)


def readings(noise, **fields):
    """Make rows for each path, each with its own amount of noise in the predictions."""
    return [
        reading(i, path, float(LABELS[i]), float(LABELS[i] + noise[path] * RNG.normal()), **fields)
        for path in PATHS
        for i in range(N)
    ]


def test_both_together_are_proved_better_than_the_better_one():
    rows = readings({"audio": 0.6, "visual": 0.4, "audio-visual": 0.05})
    (gain,) = gain_results(rows, BOOTSTRAP)
    truth = np.array([r.item.valence for r in rows[:N]])
    scores = {path: ccc([r.affect.valence for r in rows if r.path == path], truth) for path in PATHS}
    assert (gain.dimension, gain.media, gain.best_single) == ("valence", N, "visual")
    assert gain.best_single_ccc == pytest.approx(scores["visual"])
    assert gain.gain.value == pytest.approx(scores["audio-visual"] - scores["visual"])
    assert 0 < gain.gain.low < gain.gain.value < gain.gain.high


def test_a_model_that_ignores_one_modality_gains_nothing():
    rows = readings({"audio": 0.3, "visual": 0.3, "audio-visual": 0.3})
    copied = [
        replace(r, affect=rows[k % N].affect) if r.path == "audio-visual" else r for k, r in enumerate(rows)
    ]
    (gain,) = gain_results(copied, BOOTSTRAP)
    assert gain.gain.low <= 0
    assert gain.gain.value <= 0  # it is the audio path's, and the better one is at least as good


def test_the_difference_is_paired_over_works():
    """Check that equal errors make the interval much narrower than two independent intervals would."""
    rows = readings({"audio": 0.5, "visual": 2.0, "audio-visual": 0.0})
    shared = [
        replace(r, affect=replace(rows[k % N].affect, valence=rows[k % N].affect.valence * 0.99))
        if r.path == "audio-visual"
        else r
        for k, r in enumerate(rows)
    ]
    (gain,) = gain_results(shared, BOOTSTRAP)
    audio = next(a for a in affect_results(shared, BOOTSTRAP) if a.path == "audio")
    assert gain.gain.high - gain.gain.low < (audio.ccc.high - audio.ccc.low) / 5


def test_only_media_that_were_read_on_all_three_paths_count():
    rows = readings({"audio": 0.3, "visual": 0.3, "audio-visual": 0.1})
    (gain,) = gain_results(
        [r for r in rows if not (r.path == "audio" and r.item.id in ("item-0", "item-1"))], BOOTSTRAP
    )
    assert gain.media == N - 2
    assert gain_results([r for r in rows if r.path != "audio"], BOOTSTRAP) == ()
    control = [replace(r, path="audio") for r in rows]
    assert gain_results([r for r in control if r.item.modality != "audio"], BOOTSTRAP) == ()


def test_constructs_and_sources_are_never_mixed():
    rows = readings({path: 0.1 for path in PATHS})
    rows += readings({path: 1.0 for path in PATHS}, construct="induced")
    rows += readings({path: 0.5 for path in PATHS}, source="other")
    results = affect_results(rows, BOOTSTRAP)
    assert [(r.source, r.construct, r.path) for r in results] == [
        (source, construct, path)
        for source, construct in (("made-up", "expressed"), ("made-up", "induced"), ("other", "expressed"))
        for path in PATHS
    ]
    assert all(r.readings == N for r in results)
    assert results[0].ccc.value > results[6].ccc.value > results[3].ccc.value


def test_divergence_to_the_labels_beside_two_predictors_that_look_at_nothing():
    truth = RNG.dirichlet(np.ones(9), N)
    predicted = RNG.dirichlet(np.ones(9), N).astype(np.float32)
    rows = []
    for i, base in enumerate(readings({path: 0.1 for path in PATHS})[:N]):
        item = replace(base.item, emotion_distribution=tuple(truth[i]), n_raters=10)
        rows.append(replace(base, item=item, affect=replace(base.affect, emotions=predicted[i])))
    (found,) = distribution_results(rows, BOOTSTRAP)

    def expected(p):
        return np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, truth, strict=True)])

    assert found.jsd.value == pytest.approx(expected(predicted), abs=1e-6)
    assert found.uniform_jsd.value == pytest.approx(expected([UNIFORM] * N))
    assert found.mean_jsd.value == pytest.approx(expected([truth.mean(0)] * N))
    assert found.mean_raters == 10
    for figure in (found.jsd, found.uniform_jsd, found.mean_jsd):
        assert figure.low < figure.value < figure.high


def test_readings_without_distributions_have_no_divergence():
    assert distribution_results(readings({path: 0.1 for path in PATHS}), BOOTSTRAP) == ()
