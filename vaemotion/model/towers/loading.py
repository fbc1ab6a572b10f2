"""Loading of a tower: every weight of the network comes from the given tensors, and every tensor is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from vaemotion.contract.errors import UsageError

Network = TypeVar("Network", bound=nn.Module)


def load_exactly(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Put tensors of any float type into a network, as float32, frozen and in evaluation mode.

    Raises UsageError naming the first tensor that is missing, unknown or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise UsageError(
            f"these are not the weights of {type(network).__name__}: {_first_difference(expected, found)}; "
            f"make the base anew with `vaemotion base small`"
        )
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.requires_grad_(False).eval()


def _first_difference(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    name = min({*expected.items()} ^ {*found.items()})[0]
    if name not in found:
        return f"{name} is missing"
    if name not in expected:
        return f"{name} is unknown"
    return f"{name} is {list(found[name])} instead of {list(expected[name])}"
