"""Writer of a decoder as GGUF, the file that llama.cpp loads on the device.

In: the decoder's weights as NumPy arrays under their Hugging Face names, its shape, its `tokenizer.json`.
Out: one `.gguf` file that stock llama.cpp tools load, and that tokenizes as `tokenizers` does (on NFC text:
llama.cpp does not normalize). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from export.gguf.architectures import BY_NAME
from export.gguf.rope import Rope
from export.gguf.shape import DecoderShape, check_tensors, expected_shapes
from export.gguf.tokenizer import Vocabulary, read_vocabulary
from vaemotion.contract.files import whole_file

__all__ = [
    "GGUF_TYPES",
    "DecoderShape",
    "GgufTokenizer",
    "SpecialTokens",
    "check_decoder",
    "check_values",
    "write_decoder_gguf",
]

GGUF_TYPES = ("F32", "F16", "Q8_0")
"""File types that `write_decoder_gguf` accepts; `export.gguf.quantise` makes smaller ones of them."""

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
# Largest magnitude that survives: F16's maximum; Q8_0 stores max|block| / 127 as F16.
_LARGEST = {"F32": float(np.finfo(np.float32).max), "F16": 65504.0, "Q8_0": 65504.0 * 127}
_ROPE_FACTORS = f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight"


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a role; `None` where the model has no such token.

    `more_eos_ids`: further tokens that end an answer, two at most, because GGUF has keys for three.
    """

    bos_id: int | None
    eos_id: int
    pad_id: int | None
    more_eos_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class GgufTokenizer:
    """Tokenizer of a GGUF file. `json`: the path of a `tokenizer.json`, or its text."""

    json: Path | str
    special: SpecialTokens
    chat_template: str | None = None


def write_decoder_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    shape: DecoderShape,
    tokenizer: GgufTokenizer,
    *,
    file_type: str,
    name: str,
    license: str,
) -> dict[str, str]:
    """Write a decoder as GGUF and return the type that each GGUF tensor received.

    `tensors` have Hugging Face names without prefix (`embed_tokens.weight`,
    `layers.0.self_attn.q_proj.weight`, ..., `norm.weight`, and `lm_head.weight` unless tied), any float
    dtype, shapes `(out, in)`. `license` is an SPDX id. Norms and biases stay F32; under Q8_0 a matrix whose
    row width is not a multiple of 32 becomes F16.

    Raises ValueError naming the tensor, token or argument at fault. After any error, `path` is as it was.
    """
    if file_type not in GGUF_TYPES:
        raise ValueError(f"file_type: expected one of {', '.join(GGUF_TYPES)}, got {file_type!r}")
    vocabulary = check_decoder(tensors, shape, tokenizer)
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, shape.architecture)
        try:
            _add_metadata(writer, shape, file_type, name, license)
            _add_tokenizer(writer, vocabulary, tokenizer)
            return _write_tensors(writer, tensors, shape, file_type)
        finally:
            writer.close()


def check_decoder(
    tensors: Mapping[str, np.ndarray], shape: DecoderShape, tokenizer: GgufTokenizer
) -> Vocabulary:
    """Check that a decoder and its tokenizer can be written as GGUF. Raises ValueError as the writer does."""
    check_tensors(tensors, shape)
    chat = tokenizer.chat_template is not None
    vocabulary = read_vocabulary(tokenizer.json, shape.vocab_size, chat=chat)
    _check_special(tokenizer.special, vocabulary)
    return vocabulary


# -- tensors ------------------------------------------------------------------------------------------


def _tensor_type(size: tuple[int, ...], file_type: str) -> str:
    if len(size) == 1:
        return "F32"
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]
    return "F16" if file_type == "Q8_0" and size[-1] % block else file_type


def _in_pairs(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder `(n_heads * head_dim, ...)` from rotated halves (transformers) to pairs (llama.cpp)."""
    halves = rows.reshape(n_heads, 2, len(rows) // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


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


def _encode(name: str, tensor: np.ndarray, shape: DecoderShape, type_name: str) -> np.ndarray:
    """Bring one tensor into its GGUF layout and type; ValueError where a value would not survive."""
    values = np.asarray(tensor, dtype=np.float32)
    check_values(name, values, type_name)
    if BY_NAME[shape.architecture].rotates_pairs:
        if ".q_proj." in name:
            values = _in_pairs(values, shape.n_heads)
        elif ".k_proj." in name:
            values = _in_pairs(values, shape.n_kv_heads)
    return np.ascontiguousarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name]))


def _write_tensors(
    writer: gguf.GGUFWriter, tensors: Mapping[str, np.ndarray], shape: DecoderShape, file_type: str
) -> dict[str, str]:
    """Write header, metadata and tensors, one tensor in memory at a time."""
    sizes = expected_shapes(shape)
    if shape.tied:
        del sizes["lm_head.weight"]
    planned = {name: _tensor_type(size, file_type) for name, size in sizes.items()}
    gguf_names = _gguf_names(planned, shape)
    if shape.rope.factors:
        _add_tensor_info(writer, _ROPE_FACTORS, (len(shape.rope.factors),), "F32")
    for hf_name, type_name in planned.items():
        _add_tensor_info(writer, gguf_names[hf_name], sizes[hf_name], type_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if shape.rope.factors:
        writer.write_tensor_data(np.array(shape.rope.factors, np.float32))
    for hf_name, type_name in planned.items():
        writer.write_tensor_data(_encode(hf_name, tensors[hf_name], shape, type_name))
    factors = {_ROPE_FACTORS: "F32"} if shape.rope.factors else {}
    return factors | {gguf_names[hf_name]: type_name for hf_name, type_name in planned.items()}


def _gguf_names(hf_names: Iterable[str], shape: DecoderShape) -> dict[str, str]:
    (architecture,) = (arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == shape.architecture)
    known = gguf.get_tensor_name_map(architecture, shape.n_layers)
    suffixes = (".weight", ".bias")
    names: dict[str, str] = {}
    for name in hf_names:
        found = known.get_name(f"model.{name}", suffixes) or known.get_name(name, suffixes)
        assert found is not None, name
        names[name] = found
    return names


def _add_tensor_info(writer: gguf.GGUFWriter, name: str, size: tuple[int, ...], type_name: str) -> None:
    quantization = gguf.GGMLQuantizationType[type_name]
    if type_name == "Q8_0":
        size, dtype = gguf.quant_shape_to_byte_shape(size, quantization), np.dtype(np.uint8)
    else:
        dtype = np.dtype(np.float32 if type_name == "F32" else np.float16)
    writer.add_tensor_info(name, size, dtype, int(np.prod(size)) * dtype.itemsize, quantization)


# -- metadata -----------------------------------------------------------------------------------------


def _add_metadata(
    writer: gguf.GGUFWriter, shape: DecoderShape, file_type: str, name: str, license: str
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
    _add_rope(writer, shape.rope)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_file_type(_FILE_TYPES[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_rope(writer: gguf.GGUFWriter, rope: Rope) -> None:
    writer.add_rope_freq_base(rope.theta)
    if rope.sections:
        writer.add_rope_dimension_sections(rope.sections)
    if rope.scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.scaling.kind))
        writer.add_rope_scaling_factor(rope.scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.scaling.original_context_length)
        writer.add_rope_scaling_attn_factors(rope.scaling.attention_factor)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary, tokenizer: GgufTokenizer) -> None:
    special = tokenizer.special
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
        if gguf.TokenType.UNKNOWN in vocabulary.types:
            writer.add_unk_token_id(vocabulary.types.index(gguf.TokenType.UNKNOWN))
    else:
        writer.add_token_merges(vocabulary.merges)
    bos_id = special.bos_id if vocabulary.before is None else vocabulary.before
    # Without the key llama.cpp takes GPT-2's id 11, an ordinary word here, for the start token.
    writer.add_bos_token_id(special.eos_id if bos_id is None else bos_id)
    writer.add_eos_token_id(special.eos_id)
    # Their names are "end of turn" and "end of message"; llama.cpp ends an answer at each of the three.
    keys = (writer.add_eot_token_id, writer.add_eom_token_id)
    for add, token_id in zip(keys, special.more_eos_ids, strict=False):
        add(token_id)
    if special.pad_id is not None:
        writer.add_pad_token_id(special.pad_id)
    writer.add_add_bos_token(vocabulary.before is not None)
    writer.add_add_eos_token(vocabulary.after is not None)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _check_special(special: SpecialTokens, vocabulary: Vocabulary) -> None:
    """Refuse a role for an id that lies outside the vocabulary, or that the tokenizer has no token for."""
    ids = [("bos_id", special.bos_id), ("eos_id", special.eos_id), ("pad_id", special.pad_id)]
    for role, token_id in [*ids, *(("more_eos_ids", token_id) for token_id in special.more_eos_ids)]:
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
    if len(special.more_eos_ids) > 2:
        raise ValueError(
            f"special.more_eos_ids: {1 + len(special.more_eos_ids)} tokens end an answer, GGUF has keys for "
            "3; leave the others out of eos_token_id"
        )
    if vocabulary.after not in (None, special.eos_id):
        raise ValueError(
            f"tokenizer_json: a text gets token {vocabulary.after} behind it, and an answer ends with "
            f"{special.eos_id}; GGUF has one key for both"
        )
