"""Plans with a type for each matrix of a language model, from the least loss to the fewest bytes.

In: for each matrix the types that fit its rows, with bytes and the loss that each is foretold to add. Out:
plans, each one step of one matrix smaller than the last; the step that costs the least loss for a byte comes
first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Choice:
    """One type of a matrix, with its bytes and the loss that it is foretold to add."""

    type: str
    bytes: int
    kl_nats: float


@dataclass(frozen=True)
class Plan:
    """A type for each matrix, with the sums of bytes and foretold losses."""

    types: Mapping[str, str]
    bytes: int
    kl_nats: float


def plans_by_loss(choices: Mapping[str, Sequence[Choice]]) -> list[Plan]:
    """Make plans from the least loss to the fewest bytes, each one step of one matrix smaller than the last.

    The steps of a matrix lie on the convex hull of its choices, so that each costs more loss for a byte than
    the one before it; all together are ordered by that cost.
    """
    steps: list[tuple[float, str, Choice, Choice]] = []
    current: dict[str, Choice] = {}
    for name, of_matrix in choices.items():
        hull = _hull(of_matrix)
        current[name] = hull[0]
        for larger, smaller in pairwise(hull):
            steps.append((_cost(larger, smaller), name, larger, smaller))
    types = {name: choice.type for name, choice in current.items()}
    size, loss = (sum(c.bytes for c in current.values()), sum(c.kl_nats for c in current.values()))
    plans = [Plan(dict(types), size, loss)]
    for _, name, larger, smaller in sorted(steps, key=lambda step: step[0]):
        types[name] = smaller.type
        size += smaller.bytes - larger.bytes
        loss += smaller.kl_nats - larger.kl_nats
        plans.append(Plan(dict(types), size, loss))
    return plans


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Return the lower convex hull of loss over bytes, from the least loss to the fewest bytes."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.kl_nats, c.bytes)):
        if hull and choice.bytes >= hull[-1].bytes:
            continue  # no smaller than one with less loss
        while len(hull) > 1 and _cost(hull[-2], hull[-1]) >= _cost(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _cost(larger: Choice, smaller: Choice) -> float:
    """Compute the loss for each byte that the smaller type saves."""
    return (smaller.kl_nats - larger.kl_nats) / (larger.bytes - smaller.bytes)
