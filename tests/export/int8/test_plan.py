"""Choice of what gives way while INT8 does not hold its budget: a block, or the language model's type."""

import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from export.int8.judge import Budget, Judgement, Loss
from export.int8.plan import Judging, judge_until_it_holds
from export.int8.search import Block, Int8Plan
from vaemotion.contract.terminal import Terminal


@pytest.mark.parametrize(
    ("own_kl_nats", "chosen", "reverted"),
    [
        ({"Q8_0": 0.004}, "Q8_0", 1),  # F16 would save 0.004 of the 0.01 too much
        ({"Q8_0": 0.012}, "F16", 0),
        ({}, "F16", 0),  # nothing is known about it
    ],
)
def test_the_language_model_gives_way_only_where_its_own_loss_explains_the_divergence(
    own_kl_nats: Mapping[str, float], chosen: str, reverted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [Block("a", 1, damage=0.1), Block("b", 1, damage=0.2)]
    model: Any = None
    plans = {"int8": {"vision_encoder": Int8Plan("vision_encoder", "int8", model, {}, (), blocks=blocks)}}
    bounds = iter((0.03, 0.019))

    def judged(_: Any, by_scheme: Mapping[str, Any], judging: Judging, *rest: Any) -> Judgement:
        bound = next(bounds)
        return Judgement({"int8": {"kl_nats": Loss(bound, bound, judging.budget.max_kl_nats)}}, [], [])

    monkeypatch.setattr("export.int8.plan._judge", judged)
    inputs: Any = SimpleNamespace(folder=SimpleNamespace(console=Terminal(file=io.StringIO())))
    material: Any = SimpleNamespace(name="art")
    judging = Judging(material, Budget(), {"Q8_0": lambda: None, "F16": lambda: None}, own_kl_nats)
    report = judge_until_it_holds(inputs, plans, judging, material)
    assert report["language_model"] == chosen
    assert [block.state != "INT8" for block in blocks] == [False, bool(reverted)]
