"""``vaemotion gguf``: write a local Llama checkpoint, or the decoder of a SmolVLM, as GGUF.

In: a folder as `transformers` writes it (`config.json`, safetensors, `tokenizer.json`). Out: one `.gguf` file
and a table of the type that each tensor received. Nothing is downloaded or unpickled; one tensor is in memory
at a time.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig

from export.gguf.quantise import QUANTIZED_TYPES, StoredTensor, fallbacks, quantize_gguf, stored_tensors
from export.gguf.write import GGUF_TYPES, GgufTokenizer, LlamaShape, SpecialTokens, write_llama_gguf
from vaemotion.contract.errors import UsageError, UserError


def folder_to_gguf(
    folder: Path,
    out: Path,
    file_type: str,
    importance: Path | None = None,
    license: str = "NOASSERTION",
) -> None:
    """Write the folder's decoder as `out` and print the type of each tensor."""
    console = Console(stderr=True)
    try:
        with console.status(f"{folder.name} → GGUF {file_type}"):
            write_folder_gguf(folder, out, file_type, importance, license)
        stored = stored_tensors(out)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    _print_tensors(Console(), out, stored, file_type)


def write_folder_gguf(
    folder: Path, target: Path, file_type: str, importance: Path | None = None, license: str = "NOASSERTION"
) -> dict[str, str]:
    """Write the folder's Llama decoder as GGUF and return the type of each tensor.

    `file_type` is one of F32, F16, Q8_0, Q5_0, Q4_K_M; `importance` (for the last two) a file of
    `calibration.importance`. `license` is an SPDX id or expression. Raises UsageError for a folder that is
    something else, ValueError naming the tensor or token at fault; `target` is then left as it was.
    """
    if file_type not in (*GGUF_TYPES, *QUANTIZED_TYPES):
        raise UsageError(
            f"--type: expected one of {', '.join((*GGUF_TYPES, *QUANTIZED_TYPES))}, got {file_type!r}"
        )
    if importance is not None and file_type not in QUANTIZED_TYPES:
        raise UsageError(f"--importance: {file_type} takes none; it is for {' and '.join(QUANTIZED_TYPES)}")
    text_config = _decoder_config(folder)
    shape = LlamaShape.from_config(text_config)
    weights = FolderWeights(folder)
    special, template = _special_tokens(folder, text_config), _chat_template(folder)
    tokenizer = GgufTokenizer(_tokenizer_file(folder), special, template)
    written_type = file_type if file_type in GGUF_TYPES else "F32"

    def write(path: Path) -> dict[str, str]:
        return write_llama_gguf(
            path,
            weights,
            shape,
            tokenizer,
            file_type=written_type,
            name=folder.resolve().name,
            license=license,
        )

    if file_type == written_type:
        return write(target)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        unrounded = Path(work) / "f32.gguf"
        write(unrounded)
        return quantize_gguf(unrounded, target, file_type, importance)


class FolderWeights(Mapping[str, np.ndarray]):
    """The decoder's weights in a folder, by the names of `write_llama_gguf`. Read as float32 on access."""

    def __init__(self, folder: Path) -> None:
        file_of = {name: path for path in _weight_files(folder) for name in _names_in(path)}
        tables = [name for name in file_of if name.endswith("embed_tokens.weight")]
        if len(tables) != 1:
            raise UsageError(
                f"{folder}: expected one tensor called ...embed_tokens.weight, got {len(tables)}; give a "
                "folder with a Llama's weights"
            )
        prefix = tables[0].removesuffix("embed_tokens.weight")  # "model.", a SmolVLM's "model.text_model."
        self._stored: dict[str, tuple[Path, str]] = {}
        for name, path in file_of.items():
            if name.endswith("lm_head.weight"):
                self._stored["lm_head.weight"] = (path, name)
            # Old files also hold the constant inv_freq.
            elif name.startswith(prefix) and not name.endswith("rotary_emb.inv_freq"):
                self._stored[name.removeprefix(prefix)] = (path, name)

    def __getitem__(self, name: str) -> np.ndarray:
        path, stored_name = self._stored[name]
        with safe_open(path, "pt") as file:  # NumPy has no bfloat16
            return file.get_tensor(stored_name).float().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


# -- the folder -----------------------------------------------------------------------------------------


def _decoder_config(folder: Path) -> Any:
    """Read the config of the folder's decoder: all of it for a plain Llama, a part for a SmolVLM."""
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} holds no readable config.json ({error}); give the folder of a Llama checkpoint"
        ) from error
    if "model_type" not in stored:
        hint = "export it with `vaemotion export`" if "schema_version" in stored else "give a Llama's folder"
        raise UsageError(f"{path} is not one that transformers wrote; {hint}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path}: transformers does not know this model ({str(error).splitlines()[0]}); a Llama is needed"
        ) from error
    text_config = config.get_text_config()
    if text_config is not config:  # the head belongs to the whole model, and so does its tying
        text_config.tie_word_embeddings = config.tie_word_embeddings
    return text_config


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(
            {folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
        )
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)} of its index; copy the folder again, whole")
    if not files:
        raise UsageError(
            f"{folder} holds no safetensors; save the model with save_pretrained (pickles are not opened)"
        )
    return files


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged ({error}); copy it again") from error


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} lacks tokenizer.json; save the model's fast tokenizer into it with save_pretrained"
        )
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"{path} cannot be read as a tokenizer ({error}); copy it again") from error
    return path


def _special_tokens(folder: Path, text_config: Any) -> SpecialTokens:
    """Read the special tokens, from the generation config first.

    A chat model's answers end with another token than its texts, and that one is named there.
    """
    generation = _json_of(folder / "generation_config.json")

    def first(name: str) -> int | None:
        value = generation.get(name, getattr(text_config, name, None))
        return value[0] if isinstance(value, list) else value  # some models have several end tokens

    eos_id = first("eos_token_id")
    if eos_id is None:
        raise UsageError("config.json names no eos_token_id; add the id of the token that ends an answer")
    return SpecialTokens(first("bos_token_id"), eos_id, first("pad_token_id"))


def _json_of(path: Path) -> dict[str, Any]:
    """Read an optional JSON file; an empty dictionary where it is absent."""
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}); copy it again") from error


def _chat_template(folder: Path) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text("utf-8")
    template = _json_of(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None


# -- the table ------------------------------------------------------------------------------------------


def _print_tensors(console: Console, path: Path, stored: list[StoredTensor], file_type: str) -> None:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for column in ("type", "tensors", "MB", "share"):
        table.add_column(column, justify="left" if column == "type" else "right")
    total = sum(tensor.bytes for tensor in stored)
    for kind in sorted({tensor.type for tensor in stored}):
        sizes = [tensor.bytes for tensor in stored if tensor.type == kind]
        table.add_row(kind, str(len(sizes)), f"{sum(sizes) / 1e6:.2f}", f"{sum(sizes) / total:.1%}")
    console.print(table)
    fell_back = fallbacks(stored, file_type)
    alike: dict[tuple[str, str, int], list[str]] = {}  # one line for layers with the same type
    for tensor in stored:
        if tensor.name in fell_back:
            role = re.sub(r"^blk\.\d+", "blk.*", tensor.name)
            alike.setdefault((role, tensor.type, tensor.shape[-1]), []).append(tensor.name)
    for (role, kind, width), names in sorted(alike.items()):
        layers = (
            ", layers " + " ".join(name.split(".")[1] for name in names) if role.startswith("blk") else ""
        )
        console.print(
            f"  {role}: {kind}, its rows of {width} do not fit{layers}", highlight=False, markup=False
        )
    result = f"{len(fell_back)} matrices fell back" if fell_back else "every matrix fits"
    console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {file_type}, {result}", highlight=False)
