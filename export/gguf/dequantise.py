"""Reader of a Llama's GGUF file of any type, back into a folder that `transformers` loads.

In: one `.gguf` file with a byte-level BPE tokenizer. Out: a folder with `config.json`, the weights in float16
as safetensors, `tokenizer.json`, and what the file knows of generation and chat.

`transformers` reads GGUF, too, but keeps every tensor in float32 in memory, and its tokenizer does not split
digits, as the one that llama.cpp calls "smollm" does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from vaemotion.contract.files import whole_folder

# llama.cpp's names of pre-tokenizers, and what `tokenizers` calls the same. The inverse of
# `export.gguf.tokenizer`, for what a Llama with a byte-level vocabulary has.
_PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: _byte_level(),
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()]),
}


def dequantize_gguf(source: Path, folder: Path) -> None:
    """Write the Llama of a GGUF file as a folder of `transformers`; a folder of that name is replaced.

    Values are rounded once, to float16. Raises ValueError naming the field or tensor at fault for a file that
    is damaged, that is no plain Llama or whose tokenizer is no byte-level BPE; `folder` is then as it was.
    """
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise ValueError(f"{source.name} is no GGUF file, or damaged ({error}); copy it again") from error
    fields = _Fields(source.name, reader)
    tokenizer = _tokenizer(fields)
    config = _config(fields, reader)
    tensors = _tensors(fields, reader, config)
    ids = {role: getattr(config, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    texts = {f"{role}_token": fields.tokens[i] for role, i in ids.items() if i is not None}
    with whole_folder(folder) as temporary:
        config.save_pretrained(temporary)
        weights = temporary / "model.safetensors"
        save_file(tensors, weights, {"format": "pt"})
        weights.chmod(0o644)  # safetensors leaves it to its owner alone
        GenerationConfig(**{f"{role}_token_id": i for role, i in ids.items()}).save_pretrained(temporary)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            chat_template=fields.get("tokenizer.chat_template"),
            model_max_length=config.max_position_embeddings,
            **texts,
        ).save_pretrained(temporary)


class _Fields:
    """The metadata of one GGUF file, by key."""

    def __init__(self, file: str, reader: gguf.GGUFReader) -> None:
        self.file = file
        self._fields = reader.fields
        self.tokens: list[str] = self["tokenizer.ggml.tokens"]

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise ValueError(f"{self.file} lacks {key}; take the file of a language model")
        return self._fields[key].contents()

    def expect(self, key: str, *expected: Any) -> Any:
        """Return a field that must have one of the expected values."""
        value = self[key]
        if value not in expected:
            raise ValueError(
                f"{self.file}: {key} is {value!r}, expected {' or '.join(map(repr, expected))}; "
                "other families have no reader yet"
            )
        return value


# -- the network ----------------------------------------------------------------------------------------


def _config(fields: _Fields, reader: gguf.GGUFReader) -> LlamaConfig:
    fields.expect("general.architecture", "llama")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        fields.expect("llama.rope.scaling.type", "none")
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    head_width = fields.get("llama.attention.key_length", width // heads)
    if (rotated := fields.get("llama.rope.dimension_count", head_width)) != head_width:
        raise ValueError(f"{fields.file}: {rotated} of {head_width} channels of a head rotate, expected all")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(fields.tokens),
        hidden_size=width,
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=head_width,
        max_position_embeddings=fields["llama.context_length"],
        # The file has float32: 1e-05, not 9.999999747378752e-06.
        rms_norm_eps=float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        rope_parameters={"rope_type": "default", "rope_theta": fields.get("llama.rope.freq_base", 10_000.0)},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
        dtype="float16",
    )


def _tensors(fields: _Fields, reader: gguf.GGUFReader, config: LlamaConfig) -> dict[str, np.ndarray]:
    """Dequantize all tensors under the names of `transformers`, float16.

    Every tensor of the file must be one of the network that the metadata describe, and the reverse.
    """
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tensors: dict[str, np.ndarray] = {}
    for name, parameter in network.named_parameters():  # a tied head is listed once, as the embedding
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        shape = tuple(parameter.shape)
        tensor = stored.pop(gguf_name or "", None)
        if tensor is None:
            raise ValueError(f"{fields.file} lacks the tensor {gguf_name} ({name}); copy the file again")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)  # float32
        if values.shape != shape:
            raise ValueError(f"{fields.file}: {gguf_name} is {values.shape}, expected {shape}; copy it again")
        if name.endswith("q_proj.weight"):
            values = _unpermute_rope(values, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            values = _unpermute_rope(values, config.num_key_value_heads or config.num_attention_heads)
        with np.errstate(over="ignore"):
            tensors[name] = values.astype(np.float16)
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{fields.file}: {gguf_name} has values that float16 cannot hold")
    if stored:
        raise ValueError(f"{fields.file}: {min(stored)} is no tensor of a plain Llama; it has no reader yet")
    return tensors


def _unpermute_rope(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder rows `(n_heads * head_dim, D)` from pairs (llama.cpp) to rotated halves (transformers)."""
    rows, width = weight.shape
    return weight.reshape(n_heads, rows // n_heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


# -- the tokenizer --------------------------------------------------------------------------------------


def _tokenizer(fields: _Fields) -> Tokenizer:
    """Build the tokenizer that splits text as llama.cpp does with this file's vocabulary."""
    fields.expect("tokenizer.ggml.model", "gpt2")
    pre_tokenizer = _PRE_TOKENIZERS[fields.expect("tokenizer.ggml.pre", *_PRE_TOKENIZERS)]
    types: list[int] = fields.get("tokenizer.ggml.token_type", [gguf.TokenType.NORMAL] * len(fields.tokens))
    used = {token: i for i, token in enumerate(fields.tokens) if types[i] != gguf.TokenType.UNUSED}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=used, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    added = {token: types[i] for token, i in used.items() if types[i] != gguf.TokenType.NORMAL}
    tokenizer.add_special_tokens(
        [_whole(token) for token, kind in added.items() if kind == gguf.TokenType.CONTROL]
    )
    tokenizer.add_tokens([_whole(token) for token, kind in added.items() if kind != gguf.TokenType.CONTROL])
    if fields.get("tokenizer.ggml.add_bos_token", False):
        bos_id = fields["tokenizer.ggml.bos_token_id"]
        bos = fields.tokens[bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
        )
    return tokenizer


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _whole(token: str) -> AddedToken:
    """Describe a token that is matched whole, whatever stands around it."""
    return AddedToken(token, normalized=False)
