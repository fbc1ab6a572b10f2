"""What a recording tells of those who were seen, measured by an attack that prints its figures."""

from __future__ import annotations

from tests.runtime.perception.privacy_attack import READY, RECORDED, attack


def test_a_linear_decoder_sees_people_in_tokens_less_in_pooled_ones_and_hardly_in_readings() -> None:
    likeness = attack(READY, RECORDED, people=400)
    print("; ".join(f"pictures decoded from {kind}: r {r:.2f}" for kind, r in likeness.items()))
    assert likeness["tokens"] > 0.7, "the warning that record prints would be false"
    assert likeness["tokens"] > likeness["pooled"] > likeness["readings"]
    assert likeness["readings"] < 0.4
