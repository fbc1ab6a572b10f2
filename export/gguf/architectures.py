"""Decoders that llama.cpp computes as `transformers` does: the facts in which they differ.

In: the configuration of a decoder. Out: its `Architecture`, or a ValueError that names the known ones.
Sources: `src/models/*.cpp` of llama.cpp and `modeling_*.py` of transformers, whose results a test compares
for every row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Biases = tuple[str, ...]

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ATTENTION = (*_QKV, "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Architecture:
    """Facts of one kind of decoder in llama.cpp.

    `name`: GGUF's `general.architecture`. `biases_in`: the projections with a bias in a model of this
    configuration. `read_biases`: those with a bias that llama.cpp adds.
    """

    name: str
    biases_in: Callable[[Any], Biases]
    read_biases: Biases = _QKV
    rotates_pairs: bool = False
    """Rotary angles turn neighboring channels of a head, where transformers turns its two halves."""
    reads_rope_factors: bool = False
    """A divisor of each rotary frequency is read, with which Llama 3.1 stretches its context."""
    head_norms: bool = False
    """Queries and keys of each head are normalized."""
    heads_span_width: bool = False
    """The heads together are as wide as the model."""
    unrotated_every: int = 0
    """Each layer with a number that this divides has no rotary angles; 0: all have them."""
    position_sections: bool = False
    """Positions have three coordinates, each of which turns a section of the channels (M-RoPE)."""


def _configured(config: Any) -> Biases:
    attention = _ATTENTION if config.attention_bias else ()
    return (*attention, *_MLP) if getattr(config, "mlp_bias", False) else attention


def _none(_: Any) -> Biases:
    return ()


def _always_qkv(_: Any) -> Biases:
    return _QKV


_LLAMA = Architecture("llama", _configured, (*_ATTENTION, *_MLP), rotates_pairs=True, reads_rope_factors=True)

BY_MODEL_TYPE: Mapping[str, Architecture] = {
    "llama": _LLAMA,  # Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM 1 and 2, the decoders of SmolVLM
    "mistral": Architecture(
        "llama", _none, (*_ATTENTION, *_MLP), rotates_pairs=True, reads_rope_factors=True
    ),
    "smollm3": Architecture("smollm3", _configured, rotates_pairs=True, unrotated_every=4),
    "qwen2": Architecture("qwen2", _always_qkv, heads_span_width=True),  # Qwen2, Qwen2.5
    "qwen3": Architecture("qwen3", _configured, head_norms=True),
    "qwen2_5_vl_text": Architecture("qwen2vl", _always_qkv, heads_span_width=True, position_sections=True),
}
BY_NAME: Mapping[str, Architecture] = {found.name: found for found in BY_MODEL_TYPE.values()}

# Decoders that llama.cpp runs, but not from rows as wide as a token's embedding.
_DEEPSTACK = (
    "adds features of several vision layers to its first layers (DeepStack), so that llama.cpp's rows are "
    "several embeddings wide"
)
_REFUSED: Mapping[str, str] = {"qwen3_vl_text": _DEEPSTACK, "qwen3_vl_moe_text": _DEEPSTACK}


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a decoder's configuration. Raises ValueError for one that has none here."""
    found = BY_MODEL_TYPE.get(config.model_type)
    if found is None:
        reason = _REFUSED.get(config.model_type, "has no exporter yet")
        raise ValueError(
            f"config.model_type: {config.model_type!r} {reason}; known decoders: {', '.join(BY_MODEL_TYPE)}"
        )
    return found
