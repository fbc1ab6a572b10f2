"""The judge's losses, compared with an independent implementation and with a chain of known loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.int8.judge import Budget, Loss, _Known, _losses, _Outputs, judge
from export.int8.material import ArtMaterial
from runtime.perception.predictor import Predictor, Tokens, open_predictor
from vaemotion.contract.front_end import PATHS
from vaemotion.data.manifest.item import CONSTRUCTS
from vaemotion.evaluation.metrics import ccc


def expressed(values: np.ndarray) -> dict[tuple[str, str], list[np.ndarray]]:
    """Give all paths the same values (n, 2) of the expressed emotion, and none of the induced one."""
    nothing = list(np.full(values.shape, np.nan))
    return {(c, path): list(values) if c == "expressed" else nothing for c in CONSTRUCTS for path in PATHS}


def outputs(affect: np.ndarray, right: np.ndarray, kl_nats: float) -> _Outputs:
    return _Outputs(expressed(affect), [float(each) for each in right], [kl_nats] * len(affect))


def known(labels: np.ndarray) -> _Known:
    return _Known([f"work {k}" for k in range(len(labels))], expressed(labels))


def test_losses_and_their_bounds_follow_what_was_taken_away() -> None:
    rng = np.random.default_rng(0)
    labels = rng.uniform(-1, 1, (2000, 2))
    good = labels + rng.normal(0, 0.2, labels.shape)
    right = rng.random(2000) < 0.95
    reference = outputs(good, right, 0.0)
    same = _losses(reference, outputs(good, right, 0.0), known(labels), Budget())
    assert {loss.delta for loss in same.values()} == {0.0}
    assert all(loss.holds for loss in same.values())
    noisy = good + rng.normal(0, 0.2, labels.shape)
    fewer = right & (rng.random(2000) < 0.98)
    worse = _losses(reference, outputs(noisy, fewer, 0.03), known(labels), Budget())
    assert set(worse) == set(same)
    for metric, loss in worse.items():
        assert loss.bound + 1e-9 >= loss.delta > 0, metric
        assert not loss.holds, metric
    lost = ccc(good[:, 0], labels[:, 0]) - ccc(noisy[:, 0], labels[:, 0])
    assert worse["ccc_valence/audio"].delta == pytest.approx(lost)
    assert worse["kl_nats"].delta == pytest.approx(0.03)


def test_the_bound_tightens_with_more_windows() -> None:
    rng = np.random.default_rng(1)
    labels = rng.uniform(-1, 1, (2000, 2))
    good, noisy = (labels + rng.normal(0, s, labels.shape) for s in (0.2, 0.21))
    many, few = (
        _losses(
            outputs(good[:n], np.ones(n, bool), 0),
            outputs(noisy[:n], np.ones(n, bool), 0),
            known(labels[:n]),
            Budget(),
        )["ccc_valence/visual"]
        for n in (2000, 50)
    )
    assert many.bound - many.delta < few.bound - few.delta


def test_the_budget_names_what_is_allowed_for_each_metric() -> None:
    budget = Budget(max_drop=0.01)
    assert budget.allowed("ccc_arousal/audio-visual") == 0.01
    assert budget.allowed("content_accuracy") == 0.01
    assert budget.allowed("kl_nats") == 0.02
    assert budget.allowed("jitter/visual") == 1.05
    assert Loss(0, 0.02, 0.02).holds
    assert not Loss(0, float("nan"), 0.02).holds


def test_a_path_keeps_only_what_it_perceives() -> None:
    tokens = Tokens(np.ones((2, 3, 4), np.float32), np.zeros(2, np.float32), np.ones((5, 4), np.float32), 0.1)
    assert [len(tokens.only(path).visual) for path in PATHS] == [0, 2, 2]
    assert [len(tokens.only(path).audio) for path in PATHS] == [5, 0, 5]


class Trembling:
    """The EmoAdapter with noise on what it reads: more jitter, less concordance."""

    def __init__(self, engine: object) -> None:
        self.engine, self.rng = engine, np.random.default_rng(0)

    def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = dict(self.engine.run(arrays))  # type: ignore[attr-defined]
        noise = self.rng.normal(0, 0.1, out["valence_arousal"].shape)
        return {**out, "valence_arousal": out["valence_arousal"] + noise.astype(np.float32)}


def test_the_judge_passes_a_chain_against_itself_and_sees_one_that_trembles(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.int8.judge.JITTER_CLIPS", 4)
    with open_predictor(small_bundle) as reference:
        engines = {**reference.engines, "emo_adapter": Trembling(reference.engines["emo_adapter"])}
        trembling = Predictor(
            reference.constants, engines, reference.language_model, reference.tokenizer, reference.delimiters
        )
        material = ArtMaterial(reference.constants.front_end, 16)
        found = judge(reference, {"same": reference, "trembling": trembling}, material, Budget())
    assert len(set(found.sha256)) == 16
    assert found.not_judged == []
    same, shaken = found.losses["same"], found.losses["trembling"]
    assert {loss.delta for metric, loss in same.items() if not metric.startswith("jitter")} == {0.0}
    assert {loss.delta for metric, loss in same.items() if metric.startswith("jitter")} == {1.0}
    assert all(loss.holds for loss in same.values())
    assert all(not shaken[f"jitter/{path}"].holds for path in PATHS)
    assert shaken["kl_nats"].delta == 0.0  # the enhanced tokens are untouched
