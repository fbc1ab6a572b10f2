"""Pre-tokenizers of byte-level BPE that llama.cpp has under a name.

In: the `tokenizer.json` of `tokenizers`. Out: GGUF's name of the one that splits text alike, or a ValueError.
Source: the regular expressions in llama.cpp's `src/llama-vocab.cpp`; a test compares them on many texts.
"""

from collections.abc import Mapping
from typing import Any

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
_GPT2 = {**_BYTE_LEVEL, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _regex(digits: str) -> dict[str, Any]:
    """Describe the split of Llama 3 and Qwen2, which differ in how many digits stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_BYTES_ONLY = {**_BYTE_LEVEL, "use_regex": False}
_LLAMA3, _QWEN2 = _regex(r"\p{N}{1,3}"), _regex(r"\p{N}")

# Steps, and `ignore_merges`: a word that is a token stays whole, whatever the merges say.
_NAMES: tuple[tuple[str, list[Mapping[str, Any]], bool], ...] = (
    ("gpt-2", [_GPT2], False),
    ("smollm", [_DIGITS, _GPT2], False),
    ("llama-bpe", [_LLAMA3, _BYTES_ONLY], True),
    ("smaug-bpe", [_LLAMA3, _BYTES_ONLY], False),
    ("qwen2", [_QWEN2, _BYTES_ONLY], False),
)


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Return GGUF's name of the tokenizer's split. Raises ValueError where llama.cpp has none like it."""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    for name, expected, ignores_merges in _NAMES:
        alike = len(steps) == len(expected) and all(map(_has, steps, expected))
        if alike and ignores_merges == whole_words:
            return name
    raise ValueError(
        f"tokenizer_json: llama.cpp has no split of text like the pre_tokenizer "
        f"{tokenizer.get('pre_tokenizer')} with ignore_merges {whole_words}; expected that of "
        f"{', '.join(name for name, *_ in _NAMES)}"
    )


def _steps(outermost: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if outermost is None:
        return []
    return list(outermost["pretokenizers"]) if outermost["type"] == "Sequence" else [outermost]


def _has(step: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    known = {"use_regex": True, **step}  # older files leave it out
    return all(known.get(key) == value for key, value in values.items())
