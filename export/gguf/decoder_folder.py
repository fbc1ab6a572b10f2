"""A decoder in a folder, as `transformers` writes one: what GGUF records of it.

In: a folder with `config.json`, safetensors and `tokenizer.json`; a decoder alone, or one within a
vision-language model. Out: its shape, its tokenizer with special tokens and chat template, and its weights
under plain names. Nothing is downloaded or unpickled; one tensor is in memory at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING

from export.gguf.architectures import BY_MODEL_TYPE
from export.gguf.tokenizer import read_vocabulary
from export.gguf.write import DecoderShape, GgufTokenizer, SpecialTokens
from vaemotion.contract.errors import UsageError
from vaemotion.model.chat_template import find_chat, special_tokens
from vaemotion.model.tensor_files import read_json, refuse_lfs_pointer
from vaemotion.model.weights_folder import FolderWeights, read_folder_config

WANTED = "a decoder's checkpoint, or that of a vision-language model"


@dataclass(frozen=True)
class DecoderFolder:
    """Input of `write_decoder_gguf`, from a folder. `tensors` are float32, each read on access."""

    shape: DecoderShape
    tokenizer: GgufTokenizer
    tensors: "DecoderTensors"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks for the user of the GGUF file, one sentence each. Raises ValueError."""
        chat = self.tokenizer.chat_template is not None
        vocabulary = read_vocabulary(self.tokenizer.json, self.shape.vocab_size, chat=chat)
        return (*self.shape.remarks, *vocabulary.remarks)


def read_decoder_folder(folder: Path, adapter: Path | None = None) -> DecoderFolder:
    """Read what GGUF records of the folder's decoder; its weights are read on access.

    adapter: the folder of a LoRA adapter, which is merged. Raises UsageError for a folder that holds
    something else, ValueError for a decoder that llama.cpp would compute otherwise.
    """
    config = _decoder_config(folder)
    shape = DecoderShape.from_config(config)
    return DecoderFolder(shape, _tokenizer(folder, config), DecoderTensors(folder, adapter))


class DecoderTensors(Mapping[str, np.ndarray]):
    """The decoder's weights in a folder, by the names of `write_decoder_gguf`. Read as float32 on access."""

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        """Find the decoder among the folder's tensors. Raises UsageError as `FolderWeights` does."""
        self._weights = FolderWeights(folder, adapter)
        tables = [name for name in self._weights if name.endswith("embed_tokens.weight")]
        if len(tables) != 1:
            raise UsageError(
                f"{folder}: expected one tensor called ...embed_tokens.weight, got {len(tables)}; give the "
                f"folder of {WANTED}"
            )
        prefix = tables[0].removesuffix("embed_tokens.weight")  # "model.", a SmolVLM's "model.text_model."
        self._stored: dict[str, str] = {}
        for name in self._weights:
            if name.endswith("lm_head.weight"):
                self._stored["lm_head.weight"] = name
            # Old files also hold the constant inv_freq.
            elif name.startswith(prefix) and not name.endswith("rotary_emb.inv_freq"):
                self._stored[name.removeprefix(prefix)] = name

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor; no data is read."""
        stored = self._weights.shapes()
        return {name: stored[stored_name] for name, stored_name in self._stored.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._weights[self._stored[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _decoder_config(folder: Path) -> Any:
    """Read the configuration of the folder's decoder: all of it, or a part of a larger model's."""
    stored = read_folder_config(folder, WANTED)
    if stored["model_type"] not in CONFIG_MAPPING:
        raise UsageError(
            f"{folder / 'config.json'}: transformers does not know the model {stored['model_type']!r}; give "
            f"{WANTED} of type {', '.join(BY_MODEL_TYPE)}"
        )
    try:
        config = CONFIG_MAPPING[stored["model_type"]].from_dict(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / 'config.json'} does not describe a model: {error}") from error
    text_config = config.get_text_config()
    if text_config is not config:  # the head belongs to the whole model, and so does its tying
        text_config.tie_word_embeddings = config.tie_word_embeddings
    return text_config


# -- the tokenizer --------------------------------------------------------------------------------------


def _tokenizer(folder: Path, text_config: Any) -> GgufTokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} lacks tokenizer.json; save the model's fast tokenizer into it with save_pretrained"
        )
    refuse_lfs_pointer(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"{path} cannot be read as a tokenizer ({error}); copy it again") from error
    tokens = special_tokens(folder)
    named = {role: tokenizer.token_to_id(tokens.get(f"{role}_token", "")) for role in ("bos", "eos")}
    special = _special_tokens(folder, text_config, named)
    chat = find_chat(folder)
    return GgufTokenizer(path, special, chat.template if chat is not None else None)


def _special_tokens(folder: Path, text_config: Any, named: Mapping[str, int | None]) -> SpecialTokens:
    """Read the special tokens, from the generation config first.

    A chat model's answers end with another token than its texts, and that one is named there. Of several
    the one that the tokenizer calls its own comes first. named: what the tokenizer calls so.
    """
    generation = _json_of(folder / "generation_config.json")

    def ids(role: str) -> list[int]:
        value = generation.get(f"{role}_token_id", getattr(text_config, f"{role}_token_id", None))
        values = value if isinstance(value, list) else [value]
        return [number for number in values if number is not None and number >= 0]  # -1: none

    ends = sorted(dict.fromkeys(ids("eos")), key=lambda number: number != named["eos"])  # stable
    if not ends:
        raise UsageError("config.json names no eos_token_id; add the id of the token that ends an answer")
    bos_id = next(iter(ids("bos")), None) if named["bos"] is None else named["bos"]
    return SpecialTokens(bos_id, ends[0], next(iter(ids("pad")), None), tuple(ends[1:]))


def _json_of(path: Path) -> dict[str, Any]:
    """Read an optional JSON file; an empty dictionary where it is absent."""
    return read_json(path) if path.is_file() else {}
