"""Shape of a Llama decoder: the sizes that GGUF records of it, and its tensors.

In: a transformers `LlamaConfig`, or weights under their Hugging Face names. Out: `LlamaShape`, or one
ValueError that names everything that is not a plain Llama.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True)
class LlamaShape:
    """Sizes and constants of a Llama decoder, as GGUF records them beside its weights."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    context_length: int
    tied: bool
    """The output head is the token embedding."""

    @classmethod
    def from_config(cls, config: "LlamaConfig") -> "LlamaShape":
        """Read a transformers 5 `LlamaConfig`; ValueError for what GGUF's plain llama cannot express."""
        if config.model_type != "llama":
            raise ValueError(
                f"config: expected model_type 'llama', got {config.model_type!r}; it has no exporter yet"
            )
        rope: dict[str, Any] = dict(config.rope_parameters or {})
        refused = {
            "hidden_act": (config.hidden_act, "silu"),
            "attention_bias": (bool(config.attention_bias), False),
            "mlp_bias": (bool(config.mlp_bias), False),
            "rope_parameters['rope_type']": (rope.get("rope_type", "default"), "default"),
            "rope_parameters['partial_rotary_factor']": (rope.get("partial_rotary_factor", 1.0), 1.0),
        }
        for name, (came, expected) in refused.items():
            if came != expected:
                raise ValueError(
                    f"config.{name}: expected {expected!r}, got {came!r}; only the plain llama architecture "
                    "without biases and without rope scaling is exported"
                )
        if "rope_theta" not in rope:
            raise ValueError(
                f"config.rope_parameters: expected a 'rope_theta', got {rope!r}; load it with transformers 5"
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
            rope_theta=float(rope["rope_theta"]),
            rms_norm_eps=float(config.rms_norm_eps),
            context_length=config.max_position_embeddings,
            tied=bool(config.tie_word_embeddings),
        )


def expected_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """List the Hugging Face tensor names of a Llama decoder with shapes `(out, in)`, in file order."""
    d, q, kv = shape.hidden_size, shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    per_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (q, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, q),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_proj.weight": (shape.intermediate_size, d),
        "mlp.up_proj.weight": (shape.intermediate_size, d),
        "mlp.down_proj.weight": (d, shape.intermediate_size),
    }
    expected: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (shape.vocab_size, d)}
    for layer in range(shape.n_layers):
        expected |= {f"layers.{layer}.{name}": size for name, size in per_layer.items()}
    return expected | {"norm.weight": (d,), "lm_head.weight": (shape.vocab_size, d)}


def check_tensors(tensors: Mapping[str, np.ndarray], shape: LlamaShape) -> None:
    """Raise one ValueError for all tensors that are missing, extra or of a wrong shape."""
    expected = expected_shapes(shape)
    problems = [
        f"{name}: expected shape {size}, is missing"
        for name, size in expected.items()
        if name not in tensors and not (shape.tied and name == "lm_head.weight")
    ]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(
                f"{name}: not a tensor of a Llama decoder with {shape.n_layers} layers (names have no prefix)"
            )
        elif tuple(tensor.shape) != expected[name]:
            problems.append(f"{name}: expected shape {expected[name]}, got {tuple(tensor.shape)}")
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError("tensors: " + "; ".join(problems[:8]) + more)
    head = tensors.get("lm_head.weight")
    if (
        shape.tied
        and head is not None
        and not np.array_equal(head, tensors["embed_tokens.weight"], equal_nan=True)
    ):
        raise ValueError(
            "lm_head.weight: differs from embed_tokens.weight although shape.tied is True; pass tied=False"
        )
