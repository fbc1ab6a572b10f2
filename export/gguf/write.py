"""Writer of a Llama decoder as GGUF, the file that llama.cpp loads on the device.

In: the decoder's weights as NumPy arrays under their Hugging Face names, its shape, its `tokenizer.json`.
Out: one `.gguf` file that stock llama.cpp tools load, and that tokenizes as `tokenizers` does (on NFC text:
llama.cpp does not normalize). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from export.gguf.shape import LlamaShape, check_tensors, expected_shapes
from export.gguf.tokenizer import Vocabulary, read_vocabulary
from vaemotion.contract.files import whole_file

__all__ = [
    "GGUF_TYPES",
    "GgufTokenizer",
    "LlamaShape",
    "SpecialTokens",
    "check_llama",
    "check_values",
    "write_llama_gguf",
]

GGUF_TYPES = ("F32", "F16", "Q8_0")
"""File types that `write_llama_gguf` accepts; `export.gguf.quantise` makes smaller ones of them."""

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
# Largest magnitude that survives: F16's maximum; Q8_0 stores max|block| / 127 as F16.
_LARGEST = {"F32": float(np.finfo(np.float32).max), "F16": 65504.0, "Q8_0": 65504.0 * 127}


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a role; `None` where the model has no such token."""

    bos_id: int | None
    eos_id: int
    pad_id: int | None


@dataclass(frozen=True)
class GgufTokenizer:
    """Tokenizer of a GGUF file. `json`: the path of a byte-level BPE `tokenizer.json`, or its text."""

    json: Path | str
    special: SpecialTokens
    chat_template: str | None = None


def write_llama_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    shape: LlamaShape,
    tokenizer: GgufTokenizer,
    *,
    file_type: str,
    name: str,
    license: str,
) -> dict[str, str]:
    """Write a Llama decoder as GGUF and return the type that each GGUF tensor received.

    `tensors` have Hugging Face names without prefix (`embed_tokens.weight`,
    `layers.0.self_attn.q_proj.weight`, ..., `norm.weight`, and `lm_head.weight` unless tied), any float
    dtype, shapes `(out, in)`. `license` is an SPDX id. Norms stay F32; under Q8_0 a matrix whose row width is
    not a multiple of 32 becomes F16.

    Raises ValueError naming the tensor, token or argument at fault. After any error, `path` is as it was.
    """
    if file_type not in GGUF_TYPES:
        raise ValueError(f"file_type: expected one of {', '.join(GGUF_TYPES)}, got {file_type!r}")
    vocabulary = check_llama(tensors, shape, tokenizer)
    planned = {
        hf_name: _tensor_type(expected, file_type)
        for hf_name, expected in expected_shapes(shape).items()
        if not (shape.tied and hf_name == "lm_head.weight")
    }

    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        try:
            _add_metadata(writer, shape, file_type, name, license)
            _add_tokenizer(writer, vocabulary, tokenizer)
            return _write_tensors(writer, tensors, shape, planned)
        finally:
            writer.close()


def check_llama(tensors: Mapping[str, np.ndarray], shape: LlamaShape, tokenizer: GgufTokenizer) -> Vocabulary:
    """Check that a decoder and its tokenizer can be written as GGUF. Raises ValueError as the writer does."""
    check_tensors(tensors, shape)
    vocabulary = read_vocabulary(tokenizer.json, shape.vocab_size)
    _check_special(tokenizer.special, vocabulary)
    return vocabulary


# -- tensors ------------------------------------------------------------------------------------------


def _tensor_type(size: tuple[int, ...], file_type: str) -> str:
    if len(size) == 1:
        return "F32"
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]
    return "F16" if file_type == "Q8_0" and size[-1] % block else file_type


def _permute_rope(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder rows `(n_heads * head_dim, D)` from rotated halves (transformers) to pairs (llama.cpp)."""
    rows, width = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def check_values(name: str, values: np.ndarray, type_name: str) -> None:
    """Raise ValueError for values that `type_name` cannot hold: NaN, infinity, too large a magnitude."""
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise ValueError(
            f"{name}: expected finite weights, got {bad} NaN or infinite of {values.size}; check the "
            "checkpoint"
        )
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST[type_name]:
        raise ValueError(
            f"{name}: magnitude {largest:.4g} is beyond {type_name}'s {_LARGEST[type_name]:.6g}; "
            "use file_type='F32'"
        )


def _encode(name: str, tensor: np.ndarray, shape: LlamaShape, type_name: str) -> np.ndarray:
    """Bring one tensor into its GGUF layout and type; ValueError where a value would not survive."""
    values = np.asarray(tensor, dtype=np.float32)
    check_values(name, values, type_name)
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
    writer: gguf.GGUFWriter, shape: LlamaShape, file_type: str, name: str, license: str
) -> None:
    writer.add_name(name)
    writer.add_license(license)
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


def _check_special(special: SpecialTokens, vocabulary: Vocabulary) -> None:
    """Refuse a role for an id that lies outside the vocabulary, or that the tokenizer has no token for."""
    ids = {"bos_id": special.bos_id, "eos_id": special.eos_id, "pad_id": special.pad_id}
    for role, token_id in ids.items():
        if token_id is None:
            continue
        if not 0 <= token_id < len(vocabulary.tokens):
            raise ValueError(
                f"special.{role}: expected an id below vocab_size {len(vocabulary.tokens)}, got {token_id}"
            )
        if vocabulary.types[token_id] == gguf.TokenType.UNUSED:
            raise ValueError(
                f"special.{role}: the tokenizer has no token {token_id}; use the tokenizer of the checkpoint"
            )


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary, tokenizer: GgufTokenizer) -> None:
    special = tokenizer.special
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
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
