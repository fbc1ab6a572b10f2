"""Writes a Llama decoder as GGUF, the file that llama.cpp loads on the device.

In: the decoder's weights as NumPy arrays under their Hugging Face names, its shape, its `tokenizer.json`.
Out: one `.gguf` file that stock llama.cpp tools load, and that tokenises as `tokenizers` does (on NFC text:
llama.cpp does not normalise). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from export.gguf_tokenizer import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from transformers import LlamaConfig

GGUF_TYPES = ("F32", "F16", "Q8_0")
"""File types that `write_llama_gguf` accepts."""

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
# Largest magnitude that survives: F16's maximum; Q8_0 stores max|block| / 127 as F16.
_LARGEST = {"F32": float(np.finfo(np.float32).max), "F16": 65504.0, "Q8_0": 65504.0 * 127}


@dataclass(frozen=True)
class LlamaShape:
    """Everything about a Llama decoder that GGUF records beside its weights."""

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
                f"config: expected model_type 'llama', got {config.model_type!r}; no exporter for it exists yet"
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


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a role; `None` where the model has no such token."""

    bos_id: int | None
    eos_id: int
    pad_id: int | None


def write_llama_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    shape: LlamaShape,
    tokenizer_json: Path | str,
    *,
    file_type: str,
    name: str,
    licence: str,
    special: SpecialTokens,
    chat_template: str | None = None,
) -> dict[str, str]:
    """Write a Llama decoder as GGUF and return the type that each GGUF tensor really received.

    `tensors` have Hugging Face names without prefix (`embed_tokens.weight`, `layers.0.self_attn.q_proj.weight`,
    ..., `norm.weight`, and `lm_head.weight` unless tied), any float dtype, shapes `(out, in)`.
    `tokenizer_json` is the path of a byte-level BPE `tokenizer.json`, or its text. `licence` is an SPDX id.
    Norms stay F32; under Q8_0 a matrix whose row width is not a multiple of 32 becomes F16.

    Raises ValueError naming the tensor, token or argument at fault. Whatever fails, `path` is left as it was.
    """
    if file_type not in GGUF_TYPES:
        raise ValueError(f"file_type: expected one of {', '.join(GGUF_TYPES)}, got {file_type!r}")
    _check_tensors(tensors, shape)
    vocabulary = read_vocabulary(tokenizer_json, shape.vocab_size)
    _check_special(special, shape.vocab_size)
    planned = {
        hf_name: _tensor_type(expected, file_type)
        for hf_name, expected in _expected_shapes(shape).items()
        if not (shape.tied and hf_name == "lm_head.weight")
    }

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    try:
        _add_metadata(writer, shape, file_type, name, licence)
        _add_tokenizer(writer, vocabulary, special, chat_template)
        written = _write_tensors(writer, tensors, shape, planned)
        writer.close()
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return written


# -- tensors ------------------------------------------------------------------------------------------


def _expected_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face tensor names of a Llama decoder and their shapes `(out, in)`, in file order."""
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


def _check_tensors(tensors: Mapping[str, np.ndarray], shape: LlamaShape) -> None:
    """Report every missing, extra or wrongly shaped tensor at once."""
    expected = _expected_shapes(shape)
    problems = [
        f"{name}: expected shape {size}, is missing"
        for name, size in expected.items()
        if name not in tensors and not (shape.tied and name == "lm_head.weight")
    ]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(
                f"{name}: not a tensor of a Llama decoder with {shape.n_layers} layers (names carry no prefix)"
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


def _tensor_type(size: tuple[int, ...], file_type: str) -> str:
    if len(size) == 1:
        return "F32"
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]
    return "F16" if file_type == "Q8_0" and size[-1] % block else file_type


def _permute_rope(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder rows `(n_heads * head_dim, D)` from rotated halves (transformers) to pairs (llama.cpp)."""
    rows, width = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _encode(name: str, tensor: np.ndarray, shape: LlamaShape, type_name: str) -> np.ndarray:
    """Bring one tensor into its GGUF layout and type; ValueError where a value would not survive."""
    values = np.asarray(tensor, dtype=np.float32)
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise ValueError(
            f"{name}: expected finite weights, got {bad} NaN or infinite of {values.size}; check the checkpoint"
        )
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST[type_name]:
        raise ValueError(
            f"{name}: magnitude {largest:.4g} is beyond {type_name}'s {_LARGEST[type_name]:.6g}; "
            "use file_type='F32'"
        )
    if name.endswith("q_proj.weight"):
        values = _permute_rope(values, shape.n_heads)
    elif name.endswith("k_proj.weight"):
        values = _permute_rope(values, shape.n_kv_heads)
    return np.ascontiguousarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name]))


def _write_tensors(
    writer: gguf.GGUFWriter, tensors: Mapping[str, np.ndarray], shape: LlamaShape, planned: Mapping[str, str]
) -> dict[str, str]:
    """Write header, metadata and tensors, one tensor in memory at a time."""
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.n_layers)
    written: dict[str, str] = {}
    for hf_name, type_name in planned.items():
        gguf_name = name_map.get_name("model." + hf_name, try_suffixes=(".weight",)) or name_map.get_name(
            hf_name, try_suffixes=(".weight",)
        )
        assert gguf_name is not None, hf_name
        quantization = gguf.GGMLQuantizationType[type_name]
        size = tuple(tensors[hf_name].shape)
        if type_name == "Q8_0":
            size, dtype = gguf.quant_shape_to_byte_shape(size, quantization), np.dtype(np.uint8)
        else:
            dtype = np.dtype(np.float32 if type_name == "F32" else np.float16)
        writer.add_tensor_info(gguf_name, size, dtype, int(np.prod(size)) * dtype.itemsize, quantization)
        written[gguf_name] = type_name
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for hf_name, type_name in planned.items():
        writer.write_tensor_data(_encode(hf_name, tensors[hf_name], shape, type_name))
    return written


# -- metadata -----------------------------------------------------------------------------------------


def _add_metadata(
    writer: gguf.GGUFWriter, shape: LlamaShape, file_type: str, name: str, licence: str
) -> None:
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_file_type(_FILE_TYPES[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _check_special(special: SpecialTokens, vocab_size: int) -> None:
    for role, token_id in (
        ("bos_id", special.bos_id),
        ("eos_id", special.eos_id),
        ("pad_id", special.pad_id),
    ):
        if token_id is not None and not 0 <= token_id < vocab_size:
            raise ValueError(f"special.{role}: expected an id below vocab_size {vocab_size}, got {token_id}")


def _add_tokenizer(
    writer: gguf.GGUFWriter, vocabulary: Vocabulary, special: SpecialTokens, chat_template: str | None
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    # Without the key llama.cpp takes GPT-2's id 11, an ordinary word here, for the start token.
    writer.add_bos_token_id(special.eos_id if special.bos_id is None else special.bos_id)
    writer.add_eos_token_id(special.eos_id)
    if special.pad_id is not None:
        writer.add_pad_token_id(special.pad_id)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
