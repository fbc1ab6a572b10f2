"""Reader of a `tokenizer.json` for GGUF: byte-level BPE, and SentencePiece's BPE with byte fallback.

A tokenizer that llama.cpp would apply differently is refused. In: the JSON file that `tokenizers` writes.
Out: one token text and type for each id, the merges or scores, the name of llama.cpp's own pre-tokenizer that
splits text alike, and the tokens that are put around a text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from export.gguf import sentencepiece
from export.gguf.splits import pre_tokenizer_name


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary as GGUF records it; `tokens` and `types` have one entry for each id.

    `model`: "gpt2" for byte-level BPE, which has `merges`; "llama" for SentencePiece's, which has `scores`
    for each id.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[gguf.TokenType]
    merges: list[str]
    scores: list[float]
    before: int | None
    """Id of the token that the tokenizer puts before a text."""
    after: int | None
    """Id of the token that it puts behind a text."""
    space_prefix: bool = False
    """A space is put before a text."""
    remarks: tuple[str, ...] = ()
    """Texts that llama.cpp tokenizes differently, one sentence each."""


def read_vocabulary(tokenizer_json: Path | str, vocab_size: int, *, chat: bool = False) -> Vocabulary:
    """Read a `tokenizer.json`; ValueError for one that llama.cpp would apply differently.

    chat: prompts begin with a special token.
    """
    text = tokenizer_json.read_text("utf-8") if isinstance(tokenizer_json, Path) else tokenizer_json
    tokenizer: dict[str, Any] = json.loads(text)
    model: dict[str, Any] = tokenizer["model"]
    pieces = bool(model.get("byte_fallback"))
    for problem in _problems(tokenizer, pieces):
        raise ValueError(f"tokenizer_json: {problem}; llama.cpp would apply it differently")
    tokens, types = _tokens(tokenizer, vocab_size, pieces)
    before, after = _around(tokenizer.get("post_processor"))
    if not pieces:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return Vocabulary("gpt2", pre_tokenizer_name(tokenizer), tokens, types, merges, [], before, after)
    whole = {added["content"] for added in tokenizer.get("added_tokens") or []}
    score_of = sentencepiece.scores(model, whole)
    scores = [score_of.get(token, 0.0) for token in tokens]
    space_prefix, remarks = sentencepiece.space_prefix(tokenizer, chat=chat)
    return Vocabulary("llama", "default", tokens, types, [], scores, before, after, space_prefix, remarks)


def _tokens(
    tokenizer: Mapping[str, Any], vocab_size: int, pieces: bool
) -> tuple[list[str], list[gguf.TokenType]]:
    """Return text and type of each id; ids without a token are called [PAD<id>]."""
    model = tokenizer["model"]
    bytes_ = set(sentencepiece.BYTE_TOKENS) if pieces else set()
    token_of: dict[int, tuple[str, gguf.TokenType]] = {
        token_id: (token, gguf.TokenType.BYTE if token in bytes_ else gguf.TokenType.NORMAL)
        for token, token_id in model["vocab"].items()
    }
    for added in tokenizer.get("added_tokens") or []:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        if pieces and added["content"] == model.get("unk_token"):
            kind = gguf.TokenType.UNKNOWN
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
    return [token for token, _ in filled], [kind for _, kind in filled]


def _problems(tokenizer: Mapping[str, Any], pieces: bool) -> Iterator[str]:
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        yield f"expected a BPE model, byte-level or with byte fallback, got {model.get('type')!r}"
        return
    if not model["merges"]:
        yield "expected at least one merge, got none"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            yield f"expected no {key}, got {model[key]!r}"
    if pieces:
        yield from sentencepiece.problems(tokenizer)
    elif (tokenizer.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        yield f"expected no normalizer or NFC, got {tokenizer['normalizer']}"
    for added in tokenizer.get("added_tokens") or []:
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            yield f"expected added tokens without lstrip, rstrip, single_word, got {added}"


def _around(post_processor: Mapping[str, Any] | None) -> tuple[int | None, int | None]:
    """Return the tokens that are put before and behind a text: at most one each, as GGUF has it."""
    outer = post_processor or {"type": "Sequence", "processors": []}
    steps = outer["processors"] if outer["type"] == "Sequence" else [outer]
    steps = [step for step in steps if step["type"] != "ByteLevel"]  # it moves offsets only
    if not steps:
        return None, None
    if len(steps) > 1 or steps[0]["type"] != "TemplateProcessing":
        raise ValueError(f"tokenizer_json: expected no post_processor or TemplateProcessing, got {outer}")
    sides: tuple[list[int], list[int]] = ([], [])
    texts = 0
    for piece in steps[0]["single"]:
        if "Sequence" in piece:
            texts += 1
        else:
            sides[min(texts, 1)].extend(steps[0]["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    if texts != 1 or any(len(side) > 1 for side in sides):
        raise ValueError(
            f"tokenizer_json: the post_processor makes {steps[0]['single']} of a text; GGUF has one token "
            "before it and one behind it"
        )
    before, after = (side[0] if side else None for side in sides)
    return before, after
