"""Rotary positions of a decoder, as GGUF records them.

In: the configuration of a decoder. Out: `Rope`, or a ValueError for positions that llama.cpp computes
otherwise. Sources: Su et al. 2021, arXiv 2104.09864; YaRN: Peng et al. 2023, arXiv 2309.00071.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from export.gguf.architectures import Architecture


@dataclass(frozen=True)
class Scaling:
    """Stretching of a trained context.

    `kind`: "linear" or "yarn". `attention_factor`: multiplies what llama.cpp itself multiplies the angles'
    sines and cosines by.
    """

    kind: str
    factor: float
    original_context_length: int
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies: `theta ** (-2 i / head_dim)`, divided by `factors[i]` where there are any.

    `sections`: the channels that each coordinate of a position turns, for M-RoPE.
    """

    theta: float
    factors: tuple[float, ...] = ()
    scaling: Scaling | None = None
    sections: tuple[int, ...] = ()


def rope_of(config: Any, architecture: Architecture) -> Rope:
    """Read the rotary positions of a transformers 5 configuration. Raises ValueError."""
    values: dict[str, Any] = dict(config.rope_parameters or {})
    if not isinstance(values.get("rope_theta"), int | float):
        raise ValueError(
            f"config.rope_parameters: expected a number rope_theta, got {values!r}; load it with "
            "transformers 5"
        )
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"config.rope_parameters: partial_rotary_factor is {values['partial_rotary_factor']}, expected "
            f"1.0; llama.cpp rotates whole heads for {architecture.name}"
        )
    theta, sections = float(values["rope_theta"]), _sections(values, architecture)
    kind = values.get("rope_type", "default")
    try:
        if kind == "default":
            return Rope(theta, sections=sections)
        if kind == "llama3" and architecture.reads_rope_factors:
            return Rope(theta, factors=_llama3_factors(config, theta))
        if kind == "linear" and not sections:
            trained = config.max_position_embeddings
            return Rope(theta, scaling=Scaling("linear", float(values["factor"]), trained))
        if kind == "yarn" and not sections:
            return Rope(theta, scaling=_yarn(config, values))
    except KeyError as error:
        raise ValueError(f"config.rope_parameters: rope_type {kind!r} lacks {error}") from error
    raise ValueError(
        f"config.rope_parameters: rope_type {kind!r} of a {config.model_type} is nothing that llama.cpp "
        f"computes for {architecture.name}; give a model without this stretching of its context"
    )


def _sections(values: Mapping[str, Any], architecture: Architecture) -> tuple[int, ...]:
    """Return the sections of M-RoPE, to four as llama.cpp has them."""
    found: tuple[int, ...] = tuple(values.get("mrope_section") or ())
    if bool(found) != architecture.position_sections:
        expected = "three numbers" if architecture.position_sections else "none"
        raise ValueError(f"config.rope_parameters: mrope_section is {found}, expected {expected}")
    return (*found, 0)[:4] if found else ()


def _llama3_factors(config: Any, theta: float) -> tuple[float, ...]:
    """Divide the plain frequencies by those of Llama 3.1, which leave short waves as they are."""
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    n = len(frequencies)
    return tuple(theta ** (-i / n) / frequency for i, frequency in enumerate(frequencies.double().tolist()))


def _yarn(config: Any, values: Mapping[str, Any]) -> Scaling:
    for name, expected in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)):
        if values.get(name) not in (None, expected):
            raise ValueError(
                f"config.rope_parameters: {name} is {values[name]}, expected {expected}, which llama.cpp has "
                "in its code"
            )
    _, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config, None)
    original = int(values["original_max_position_embeddings"])
    factor = float(values.get("factor") or config.max_position_embeddings / original)
    # llama.cpp has YaRN's own factor, 0.1 ln(factor) + 1, without a key.
    return Scaling("yarn", factor, original, attention_factor / (0.1 * math.log(factor) + 1.0))
