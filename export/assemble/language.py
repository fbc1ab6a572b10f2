"""The language model of a recipe: its GGUF files, the token embeddings in them, and its tokenizer.

In: files. Out: their sizes and tables, or sentences on what does not fit together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from runtime.engines.golden import LOGIT_TOLERANCE, logit_error
from runtime.engines.language_model import LanguageModel
from runtime.engines.llama import LanguageModelError, backend, flash_attention, model_parameters
from vaemotion.contract.errors import UsageError
from vaemotion.contract.positions import text_places
from vaemotion.model.tensor_files import refuse_lfs_pointer

Float16 = npt.NDArray[np.float16]
_TABLE = "token_embd.weight"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file. ``type``: such as "Q4_K_M"; ``width``: D; ``tokens``: the vocabulary by id.

    ``trained_tokens``: the longest context that it was trained for.
    """

    path: Path
    type: str
    width: int
    trained_tokens: int
    tokens: tuple[str, ...]


def read_gguf(path: Path) -> GgufFile:
    """Read what a GGUF file says of itself. Raises UsageError for a damaged one or no language model."""
    reader = _reader(path)

    def value(key: str) -> Any:
        if key not in reader.fields:
            raise UsageError(f"{path} lacks {key}; give the GGUF file of a language model")
        return reader.fields[key].contents()

    if all(tensor.name != _TABLE for tensor in reader.tensors):
        raise UsageError(
            f"{path} holds no {_TABLE}; give the GGUF file of a language model, not a part of one"
        )
    architecture = value("general.architecture")
    return GgufFile(
        path,
        _file_type(reader),
        int(value(f"{architecture}.embedding_length")),
        int(value(f"{architecture}.context_length")),
        tuple(value("tokenizer.ggml.tokens")),
    )


def _reader(path: Path) -> gguf.GGUFReader:
    refuse_lfs_pointer(path)
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UsageError(f"{path} is no GGUF file, or damaged ({error}); copy it again") from error


def _file_type(reader: gguf.GGUFReader) -> str:
    """Name the file type as llama.cpp does; without an entry that of the largest tensor."""
    field = reader.fields.get("general.file_type")
    with contextlib.suppress(ValueError):
        if field is not None:
            name = gguf.LlamaFileType(field.contents()).name
            return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return max(reader.tensors, key=lambda tensor: tensor.n_bytes).tensor_type.name


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``. Raises UsageError."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"{path} cannot be read as a tokenizer ({error}); copy it again") from error


def vocabulary_problem(file: GgufFile, tokenizer: Tokenizer) -> str | None:
    """Say where a tokenizer and a GGUF file differ; None where every id of the tokenizer means the same."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    beyond = max(known.values()) - len(file.tokens) + 1
    if beyond > 0:
        return (
            f"tokenizer.json has ids up to {max(known.values())}, and {file.path.name} has "
            f"{len(file.tokens)} tokens; take both from one model"
        )
    different = [(i, text) for text, i in known.items() if file.tokens[i] != text]
    if different:
        number, text = min(different)
        return (
            f"token {number} is {text!r} in tokenizer.json and {file.tokens[number]!r} in {file.path.name}; "
            "take both from one model"
        )
    return None


def token_embeddings(path: Path, ids: Sequence[int], *, has_grid: bool) -> Float16:
    """Read the token embeddings of a GGUF file, (vocabulary, D), and compare what llama.cpp makes of them.

    Its logits after the token ``ids`` must be those after their embeddings, which a device feeds. Raises
    UsageError where they differ, because the architecture does more with a token than look its row up, and
    where the model needs a grid of a frame's tokens and ``has_grid`` is false, or the reverse; ValueError for
    embeddings that float16 cannot hold.
    """
    [stored] = [tensor for tensor in _reader(path).tensors if tensor.name == _TABLE]
    with np.errstate(over="ignore"):
        table = gguf.quants.dequantize(stored.data, stored.tensor_type).astype(np.float16)
    if not np.isfinite(table).all():
        raise ValueError(f"{path.name}: its token embeddings are not finite in float16")
    # Unrounded: where activations have 8 bits, rounded rows differ by some percent after the last layer.
    rows = gguf.quants.dequantize(stored.data[list(ids)], stored.tensor_type).astype(np.float32)
    with LanguageModel(path, table, context_tokens=len(ids) + 1) as model:
        if has_grid != (model.row_width > model.width):
            raise UsageError(
                f"{path.name} places a frame's tokens in two dimensions; give their [picture_grid]"
                if not has_grid
                else f"{path.name} places all tokens one behind the other; leave [picture_grid] out"
            )
        got = model.logits(np.hstack([rows, text_places(len(rows))]) if has_grid else rows)
    difference = float(logit_error(_logits_after(path, ids), got).max())
    if not difference <= LOGIT_TOLERANCE:
        raise UsageError(
            f"{path.name}: llama.cpp predicts other tokens after embeddings than after their ids (error of "
            f"the logits {difference:.0%} of their spread); its architecture changes embeddings before the "
            "first layer, which a bundle does not"
        )
    return table


def _logits_after(path: Path, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Compute llama.cpp's logits (1, vocabulary) after token ids."""
    llama = backend().llama
    with contextlib.ExitStack() as stack:
        model = llama.llama_model_load_from_file(str(path).encode(), model_parameters())
        if not model:
            raise LanguageModelError(f"llama.cpp cannot load {path.name}: {backend().reason()}")
        stack.callback(llama.llama_model_free, model)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = len(ids) + 1
        parameters.flash_attn_type = flash_attention()  # as a bundle's, or the last bits differ
        context = llama.llama_init_from_model(model, parameters)
        if not context:
            raise LanguageModelError(f"llama.cpp cannot open {path.name}: {backend().reason()}")
        stack.callback(llama.llama_free, context)
        tokens = (llama.llama_token * len(ids))(*ids)  # the batch only points to them
        batch = llama.llama_batch_get_one(tokens, len(ids))
        if llama.llama_decode(context, batch) != 0:
            raise LanguageModelError(f"llama.cpp cannot run {path.name}: {backend().reason()}")
        size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (size,))[None].copy()
