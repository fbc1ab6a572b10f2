"""Networks of ``transformers`` whose every weight comes from a folder.

In: a class, its configuration, the tensors of a folder. Out: the network in float32, or a UsageError that
names what differs. ``transformers`` itself fills gaps with random weights, other ones at each load.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from vaemotion.contract.errors import UsageError
from vaemotion.model.lora_adapter import tail


class FolderTensors(Protocol):
    """Tensors by name, float32, read on access: ``FolderWeights``, or some of them under other names."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor; no data is read."""
        ...

    def __getitem__(self, name: str, /) -> np.ndarray: ...


def load_strictly(
    network_class: Any, config: Any, folder: Path, weights: FolderTensors, unused: tuple[str, ...] = ()
) -> Any:
    """Build a network in float32 from the tensors of ``folder``, each held once, in evaluation mode.

    Older names that ``transformers`` converts are converted. unused: starts of the names of tensors that the
    folder may hold beyond the network, such as a classifier. Raises UsageError when a tensor is missing,
    unknown or of another shape, or when tied tensors differ.
    """
    shapes = {name: shape for name, shape in weights.shapes().items() if not name.startswith(unused)}
    # Compared without data first: a wrong configuration can ask for more memory than there is.
    outline = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    _refuse_differences(folder, *_from_tensors(network_class, config, folder, outline, {"": "meta"}))
    tensors = {name: torch.from_numpy(weights[name]) for name in shapes}
    network, info = _from_tensors(network_class, config, folder, tensors)
    _refuse_differences(folder, network, info)
    _refuse_untied(folder, network)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    return network.eval()


def _from_tensors(
    network_class: Any,
    config: Any,
    folder: Path,
    tensors: dict[str, Tensor],
    device_map: dict[str, str] | None = None,
) -> tuple[Any, Mapping[str, Any]]:
    """Let ``transformers`` build the network; return it, and what it says about the tensors."""
    try:
        with _silent_transformers():
            return network_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map=device_map,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        raise UsageError(
            f"{folder / 'config.json'} describes a network that cannot be built "
            f"({' '.join(str(error).split())}); copy the config.json that belongs to these weights"
        ) from error


def _refuse_differences(folder: Path, network: Any, info: Mapping[str, Any]) -> None:
    """Raise UsageError unless the folder's tensors are the network's. info: as ``transformers`` gives it."""
    missing, unexpected, parts = _sorted(info["missing_keys"]), _sorted(info["unexpected_keys"]), list[str]()
    if missing:
        parts.append(f"{_counted(missing)} missing ({_first(missing)})")
    if unexpected:
        parts.append(f"{_counted(unexpected)} unknown ({_first(unexpected)})")
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, built = mismatched[0]
        shapes = f"{list(stored)} instead of {list(built)}"
        parts.append(f"{_counted(mismatched)} of another shape ({name}: {shapes})")
    if parts:
        looks = _what_it_looks_like(missing, unexpected, set(network.state_dict()))
        raise UsageError(f"{folder} does not hold the model of its config.json: {'; '.join(parts)}. {looks}")


def _what_it_looks_like(missing: Sequence[str], unexpected: Sequence[str], expected: Set[str]) -> str:
    """Name the likely cause and the way out in one sentence. expected: all names of the network."""
    if found := _other_name(missing, unexpected):
        name, other = found
        if other.startswith(name.rpartition(".")[0] + "."):
            return f"{other} looks quantized or packed: give the unquantized model's folder"
        return (
            f"{name} is called {other}, as by another program: load the model there, and save it with the "
            f"save_pretrained() of `transformers`"
        )
    for names, others, wrong in ((missing, expected - {*missing}, "more"), (unexpected, expected, "fewer")):
        if names and all(map(_layer, names)) and not {*map(_layer, names)} & {*map(_layer, others)}:
            return (
                f"config.json says {wrong} layers than there are: copy config.json and weights of one model"
            )
    return "Copy config.json and weights of one model, whole"


def _other_name(missing: Sequence[str], unexpected: Sequence[str]) -> tuple[str, str] | None:
    """Find a missing tensor that the folder has under another name, and that name."""
    for name in missing:
        module = name.rpartition(".")[0]
        for other in unexpected:
            if other.startswith(module + ".") or tail(other) == tail(name):
                return name, other
    return None


def _layer(name: str) -> str:
    """Cut a name behind its first number, ``model.text_model.layers.0``; empty for one without a number."""
    numbered = re.match(r".+?\.\d+(?=\.)", name)
    return numbered.group() if numbered else ""


def _sorted(names: Iterable[str]) -> list[str]:
    """Sort layer 10 behind layer 9."""
    return sorted(
        names,
        key=lambda name: [
            (part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")
        ],
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", …" if len(names) > 2 else "")


def _counted(names: Sequence[Any]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _refuse_untied(folder: Path, network: Any) -> None:
    """Raise UsageError when the configuration ties two tensors of which the folder holds two versions."""
    # Of such a pair `transformers` only warns, and takes it out of what it calls tied.
    for name, source in network.get_expanded_tied_weights_keys(all_submodels=True).items():
        if network.get_parameter(name) is not network.get_parameter(source):
            raise UsageError(
                f"{folder}: config.json ties {name} to {source}, and the weights hold both with different "
                f"values; set tie_word_embeddings to false in config.json"
            )


@contextmanager
def _silent_transformers() -> Generator[None]:
    """Keep the progress bars and reports of ``transformers`` out of our own output."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
