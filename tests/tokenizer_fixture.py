"""Small tokenizers of every kind that GGUF is written for, as `tokenizer.json` texts or dictionaries."""

import json
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import generate_merges

from tests.llama_fixture import CORPUS, train_tokenizer

Json = dict[str, Any]

BYTES_ONLY: Json = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
PREPENDED: Json = {  # how Llama 2 is published
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
}


def split_at(digits: str) -> Json:
    """Describe the published split of Llama 3 and Qwen2; `digits`: those that stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    ).replace("DIGITS", digits)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTES_ONLY]}}


def metaspace(scheme: str) -> Json:
    """Describe how transformers 5 and Mistral 7B v0.3 put spaces before SentencePiece's tokens."""
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {"pre_tokenizer": step}


def around(before: list[tuple[str, int]], after: list[tuple[str, int]] = []) -> Json:  # noqa: B006
    """Describe a post-processor that puts tokens before a text and behind it."""
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for token, _ in before]
    pieces.append({"Sequence": {"id": "A", "type_id": 0}})
    pieces += [{"SpecialToken": {"id": token, "type_id": 0}} for token, _ in after]
    ids = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (*before, *after)}
    pair = [*pieces, {"Sequence": {"id": "B", "type_id": 0}}]
    step = {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": ids}
    return {"post_processor": {"type": "Sequence", "processors": [BYTES_ONLY, step]}}


def byte_level(**parts: Any) -> Json:
    """Train a byte-level tokenizer; `parts` replace those of its JSON, `ignore_merges` that of its model."""
    found: Json = json.loads(train_tokenizer().to_str())
    found["model"]["ignore_merges"] = parts.pop("ignore_merges", False)
    return found | parts


def sentencepiece(**parts: Any) -> Json:
    """Make a tokenizer of Llama 2's kind, with three special tokens and 256 bytes; see `byte_level`."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    pieces = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    spaces = ["▁" * count for count in range(2, 9)]
    special = ["<unk>", "<s>", "</s>"]
    learnt = [piece for piece, _ in pieces if len(piece) > 1]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *spaces, *learnt]
    tokens += [piece for piece, _ in pieces if len(piece) == 1]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # As in Llama 2, spaces are merged last.
    scores = {token: -1e9 for token in spaces} | {token: -float(n) for n, token in enumerate(learnt)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": generate_merges(vocabulary, scores)}
    model |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    added = [whole(token, number) for number, token in enumerate(special)]
    empty = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {"version": "1.0", **dict.fromkeys(empty), "added_tokens": added, "model": model, **parts}


def whole(token: str, number: int, **flags: bool) -> Json:
    """Describe a special token that is found whole, whatever stands around it."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, "special": True, **plain, **flags}
