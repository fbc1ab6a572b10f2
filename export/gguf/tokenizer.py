"""Reader of a byte-level BPE `tokenizer.json` for GGUF.

A tokenizer that llama.cpp would apply differently is refused. In: the JSON file that `tokenizers` writes.
Out: one token text and type for each id, merges, and the name of llama.cpp's own pre-tokenizer that splits
text alike.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary as GGUF records it; `tokens` and `types` have one entry for each id."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]


def read_vocabulary(tokenizer_json: Path | str, vocab_size: int) -> Vocabulary:
    """Read a byte-level BPE `tokenizer.json`; ValueError for one that llama.cpp would apply differently."""
    text = tokenizer_json.read_text("utf-8") if isinstance(tokenizer_json, Path) else tokenizer_json
    tokenizer: dict[str, Any] = json.loads(text)
    model: dict[str, Any] = tokenizer["model"]
    for problem in _tokenizer_problems(tokenizer, model):
        raise ValueError(f"tokenizer_json: {problem}; llama.cpp would apply differently")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]

    token_of: dict[int, tuple[str, gguf.TokenType]] = {
        token_id: (token, gguf.TokenType.NORMAL) for token, token_id in model["vocab"].items()
    }
    for added in tokenizer.get("added_tokens") or []:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        token_of[added["id"]] = (added["content"], kind)
    if max(token_of) >= vocab_size:
        raise ValueError(
            f"tokenizer_json: token {token_of[max(token_of)][0]!r} has id {max(token_of)}, expected ids "
            f"below vocab_size {vocab_size}; resize the embedding or use the tokenizer of the checkpoint"
        )
    filled = [token_of.get(i, (f"[PAD{i}]", gguf.TokenType.UNUSED)) for i in range(vocab_size)]
    if len({token for token, _ in filled}) != vocab_size:  # llama.cpp aborts the process on duplicates
        raise ValueError(
            "tokenizer_json: two ids share one text; expected distinct tokens (none called [PAD<id>])"
        )
    pre = "smollm" if tokenizer["pre_tokenizer"]["type"] == "Sequence" else "gpt-2"
    return Vocabulary(pre, [token for token, _ in filled], [int(kind) for _, kind in filled], merges)


def _tokenizer_problems(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    if model.get("type") != "BPE":
        yield f"expected a byte-level BPE model, got {model.get('type')!r}"
        return
    if not model["merges"]:
        yield "expected at least one merge, got none"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            yield f"expected no {key}, got {model[key]!r}"
    if (tokenizer.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        yield f"expected no normalizer or NFC, got {tokenizer['normalizer']}"
    if not _is_known_split(tokenizer.get("pre_tokenizer") or {}):
        yield (
            "expected the pre_tokenizer ByteLevel(add_prefix_space=False), alone or after "
            f"Digits(individual_digits=True), got {tokenizer.get('pre_tokenizer')}"
        )
    for added in tokenizer.get("added_tokens") or []:
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            yield f"expected added tokens without lstrip, rstrip, single_word, got {added}"


def _is_known_split(pre_tokenizer: Mapping[str, Any]) -> bool:
    steps = (
        pre_tokenizer.get("pretokenizers", []) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    )
    if not steps or any(steps[-1].get(key) != value for key, value in _BYTE_LEVEL.items()):
        return False
    digits = [(step.get("type"), step.get("individual_digits")) for step in steps[:-1]]
    return digits == ([("Digits", True)] if pre_tokenizer["type"] == "Sequence" else [])
