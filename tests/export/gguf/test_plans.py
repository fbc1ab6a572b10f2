"""Plans of types: the order of their steps, compared with all combinations."""

from itertools import product

import numpy as np
import pytest

from export.gguf.plans import Choice, plans_by_loss


def of_random_matrices(seed: int) -> dict[str, list[Choice]]:
    generator = np.random.default_rng(seed)
    return {
        f"matrix {i}": [Choice("F16", 1000, 0.0)]
        + [
            Choice(f"type {j}", int(size), float(loss))
            for j, (size, loss) in enumerate(
                zip(generator.integers(100, 900, 4), generator.exponential(1, 4), strict=True)
            )
        ]
        for i in range(4)
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_combination_is_smaller_and_loses_less(seed: int) -> None:
    choices = of_random_matrices(seed)
    plans = plans_by_loss(choices)
    combinations = [
        (sum(c.bytes for c in chosen), sum(c.kl_nats for c in chosen))
        for chosen in product(*choices.values())
    ]
    for plan in plans:
        assert not any(size < plan.bytes and loss < plan.kl_nats - 1e-9 for size, loss in combinations)
        chosen = [next(c for c in choices[name] if c.type == kind) for name, kind in plan.types.items()]
        assert plan.bytes == sum(c.bytes for c in chosen)
        assert plan.kl_nats == pytest.approx(sum(c.kl_nats for c in chosen))
    sizes = [plan.bytes for plan in plans]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] == min(size for size, _ in combinations)
    assert plans[0].kl_nats == 0


def test_a_type_that_loses_nothing_takes_the_place_of_a_larger_one() -> None:
    choices = {"a": [Choice("F16", 100, 0.0), Choice("Q4_1", 40, 0.0), Choice("Q5_0", 50, 0.2)]}
    assert [plan.types for plan in plans_by_loss(choices)] == [{"a": "Q4_1"}]


def test_a_matrix_of_one_type_stays() -> None:
    plans = plans_by_loss(
        {"a": [Choice("F16", 10, 0.0)], "b": [Choice("F16", 9, 0.0), Choice("Q8_0", 5, 0.1)]}
    )
    assert [dict(plan.types) for plan in plans] == [{"a": "F16", "b": "F16"}, {"a": "F16", "b": "Q8_0"}]
